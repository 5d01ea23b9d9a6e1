"""The clients' data as files, written once for all worker processes, which map them into memory instead of copying.

The folder holds the data that training reads: samples, presence, targets, questions, ids of example and patient, and
the rows of every client. Arrays are ``.npy`` and read-only, so their pages are shared; one that many clients share is
written once. It is data of patients: the folder is this user's only, and goes when the exchange is closed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl

from medfed.core.errors import RunError
from medfed.datasets.base import Card
from medfed.datasets.decoded import Decoded
from medfed.federated.client import Client
from medfed.tasks.base import Labels, Task, TaskSet

IDS = ("example", "patient")
CONTENTS = "contents.json"
T = TypeVar("T")


def write_store(folder: Path, clients: Iterable[Client]) -> dict[str, Task]:
    """Lay the data of ``clients`` into ``folder``, replacing what lay there; return the tasks that a reader needs.

    Raises RunError if the disk has not enough space.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    held = {client.id: {"private": client.tasks, "public": client.public} for client in clients}
    sets = _distinct(part for kinds in held.values() for parts in kinds.values() for part in parts.values())
    data, labels = _distinct(part.data for part in sets), _distinct(part.labels for part in sets)
    read = [sorted({name for part in sets if part.data is one for name in part.task.modalities}) for one in data]
    _require_space(folder, data, read, labels)
    for number, (one, modalities) in enumerate(zip(data, read, strict=True)):
        _write_data(folder / f"data-{number}", one, modalities)
    for number, label in enumerate(labels):
        _write_labels(folder / f"labels-{number}", label)
    np.save(folder / "rows.npy", np.concatenate([part.rows for part in sets]))
    ends = np.cumsum([0, *(len(part) for part in sets)]).tolist()
    place = {id(value): number for values in (sets, data, labels) for number, value in enumerate(values)}
    contents = {
        "data": [
            {"name": one.name, "card": one.card.model_dump(mode="json"), "modalities": names}
            for one, names in zip(data, read, strict=True)
        ],
        "labels": len(labels),
        "sets": [
            {"task": part.task.name, "data": place[id(part.data)], "labels": place[id(part.labels)], "rows": span}
            for part, span in zip(sets, pairwise(ends), strict=True)
        ],
        "clients": {
            client: {kind: {name: place[id(part)] for name, part in parts.items()} for kind, parts in kinds.items()}
            for client, kinds in held.items()
        },
    }
    (folder / CONTENTS).write_text(json.dumps(contents), encoding="utf-8")
    return {part.task.name: part.task for part in sets}


def read_store(folder: Path, tasks: Mapping[str, Task]) -> dict[str, Client]:
    """Return the clients of a store by id; their arrays are mapped, not read."""
    contents = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    data = [_data(folder / f"data-{number}", facts) for number, facts in enumerate(contents["data"])]
    labels = [_labels(folder / f"labels-{number}") for number in range(contents["labels"])]
    sets = [
        TaskSet(tasks[item["task"]], data[item["data"]], rows[slice(*item["rows"])], labels[item["labels"]])
        for item in contents["sets"]
    ]
    return {
        name: Client(name, *({task: sets[number] for task, number in kind.items()} for kind in kinds.values()))
        for name, kinds in contents["clients"].items()
    }


def _distinct(values: Iterable[T]) -> list[T]:
    """Return every object once, in the order of first appearance."""
    return list({id(value): value for value in values}.values())


def _require_space(folder: Path, data: list[Decoded], read: list[list[str]], labels: list[Labels]) -> None:
    needed = sum(one.samples[name].nbytes for one, names in zip(data, read, strict=True) for name in names)
    needed += sum(label.targets.nbytes for label in labels)
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"worker processes share the data as files: {needed:,} bytes are needed, {free:,} are free"
        raise RunError(what, where=folder, hint="make room on this disk, or run with --workers 1")


def _write_data(folder: Path, data: Decoded, modalities: list[str]) -> None:
    folder.mkdir()
    data.index.select(IDS).write_parquet(folder / "ids.parquet")
    for name in modalities:
        np.save(folder / f"samples.{name}.npy", data.samples[name])
        np.save(folder / f"present.{name}.npy", data.present[name])


def _data(folder: Path, facts: Mapping[str, Any]) -> Decoded:
    samples, present = (
        {name: np.load(folder / f"{kind}.{name}.npy", mmap_mode="r") for name in facts["modalities"]}
        for kind in ("samples", "present")
    )
    card = Card.model_validate(facts["card"])
    return Decoded(facts["name"], card, pl.read_parquet(folder / "ids.parquet"), samples, present)


def _write_labels(folder: Path, labels: Labels) -> None:
    folder.mkdir()
    np.save(folder / "targets.npy", labels.targets)
    questions = pl.DataFrame({"question": labels.questions}, schema={"question": pl.Utf8})
    questions.write_parquet(folder / "questions.parquet")


def _labels(folder: Path) -> Labels:
    questions = pl.read_parquet(folder / "questions.parquet")["question"]
    return Labels(np.load(folder / "targets.npy", mmap_mode="r"), tuple(questions))
