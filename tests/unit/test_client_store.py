"""The clients' data on disk: what is read back gives the same batches, and is mapped, not copied."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from medfed.core.errors import RunError
from medfed.core.types import Batch
from medfed.federated.client import Client
from medfed.federated.client_store import read_store, write_store
from medfed.federated.local import steps
from support import twins
from support.federated_toys import SMALL, small_clients
from support.native_files import all_examples, decoded_twin


def batches(client: Client) -> Iterator[Batch]:
    for items in steps(client.tasks, SMALL, 0, client.id, 1):
        yield from (item.batch for item in items)
    for examples in client.public.values():
        yield from examples.batches(10)


def same(one: Batch, other: Batch) -> bool:
    tensors = [(one.target, other.target)]
    for mine, theirs in ((one.inputs, other.inputs), (one.present, other.present)):
        assert list(mine) == list(theirs)
        tensors += [(mine[name], theirs[name]) for name in mine]
    equal = all(a.dtype == b.dtype and torch.equal(a, b) for a, b in tensors)
    return equal and (one.examples, one.questions) == (other.examples, other.questions)


def test_every_batch_comes_back_bit_for_bit(tmp_path: Path) -> None:
    clients = small_clients()
    read = read_store(tmp_path / "store", write_store(tmp_path / "store", clients))
    assert list(read) == [client.id for client in clients]
    for client in clients:
        pairs = list(zip(batches(client), batches(read[client.id]), strict=True))
        assert pairs
        assert all(same(*pair) for pair in pairs)
        assert read[client.id].examples({"encoders.a", "encoders.b", "heads.x", "fusion"}) == client.examples(
            {"encoders.a", "encoders.b", "heads.x", "fusion"}
        )


def test_what_clients_share_is_written_once_and_mapped_read_only(tmp_path: Path) -> None:
    whole = small_clients()[0].tasks["x"]
    clients = [Client(f"h{number}", {"x": whole.holding(np.arange(number, 17, 4))}) for number in range(4)]
    read = read_store(tmp_path / "store", write_store(tmp_path / "store", clients))
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "contents.json",
        "data-0",
        "labels-0",
        "rows.npy",
    ]
    samples = {id(client.tasks["x"].data.samples["a"]) for client in read.values()}
    assert len(samples) == 1
    mapped = read["h0"].tasks["x"].data.samples["a"]
    assert isinstance(mapped, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0


def test_questions_masks_and_absent_modalities_come_back(tmp_path: Path) -> None:
    masks = all_examples(decoded_twin(tmp_path / "twin", num_patients=3))
    questions = twins.cohort("path-vqa").clients["client-0"]["path-vqa"]
    assert questions.labels.questions
    for examples in (masks, questions):
        client = Client("h", {examples.task.name: examples})
        (read,) = read_store(tmp_path / "store", write_store(tmp_path / "store", [client])).values()
        for one, other in zip(examples.batches(3), read.tasks[examples.task.name].batches(3), strict=True):
            assert same(one, other)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**6, 10**6, 100))
    with pytest.raises(RunError, match=r"[\d,]{4,} bytes are needed, 100 are free"):
        write_store(tmp_path / "store", small_clients())
    assert list((tmp_path / "store").iterdir()) == []
