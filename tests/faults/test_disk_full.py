"""A disk that is full while a file is written: the old file is intact, and the message says which and how much.

A limit on the size of this process's files stands for the full disk, so that libraries that write in other languages
than Python meet it as well.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from medfed.core.errors import DiskError, SiteError
from medfed.core.files import written_whole
from medfed.federated.memory import DiskMemory
from medfed.records.folder import RunFolder
from medfed.runs.checkpoints import Checkpoints
from medfed.sites.audit import AuditLog

SMALL, LARGE = {"w": torch.zeros(8)}, {"w": torch.ones(5000)}
FULL = 2000
"""Bytes that fit into a file: a small state does, a large one does not."""


@contextmanager
def full_disk(num_bytes: int = FULL) -> Iterator[None]:
    """Let no file grow beyond ``num_bytes`` while the block runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_tells(error: DiskError, path: Path, num_bytes: int) -> None:
    assert error.where == path
    assert error.exit_status == 1
    for words in (
        "cannot write it",
        f"{num_bytes:,} bytes are needed",
        "are free",
        "next step: make room on this disk",
    ):
        assert words in str(error)


def test_a_checkpoint_is_whole_or_absent(tmp_path: Path) -> None:
    run = Checkpoints(tmp_path)
    run.save(1, SMALL, {"round": 1})
    with full_disk(), pytest.raises(DiskError) as caught:
        run.save(2, LARGE, {"round": 2})
    assert_tells(caught.value, tmp_path / "checkpoints" / "000002", 20_000)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000001"]
    loaded = run.load()
    assert loaded is not None
    assert loaded[1]["round"] == 1
    run.save(2, LARGE, {"round": 2})
    loaded = run.load()
    assert loaded is not None
    assert torch.equal(loaded[0]["w"], LARGE["w"])


def test_a_run_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_text("scores.json", "old")
    with full_disk(), pytest.raises(DiskError) as caught:
        run.write_text("scores.json", "x" * 5000)
    assert_tells(caught.value, tmp_path / "scores.json", 5000)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    assert (tmp_path / "scores.json").read_text(encoding="utf-8") == "old"


def test_what_a_client_keeps_is_whole_or_as_it_was(tmp_path: Path) -> None:
    memory = DiskMemory(tmp_path)
    memory.keep("site-0", 1, SMALL)
    with full_disk(), pytest.raises(DiskError) as caught:
        memory.keep("site-0", 2, LARGE)
    assert_tells(caught.value, next(tmp_path.iterdir()) / "000002.safetensors", 20_000)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["000001.safetensors"]
    kept = memory.before("site-0", 3)
    assert kept is not None
    assert torch.equal(kept["w"], SMALL["w"])


def test_an_audit_log_that_cannot_be_written_holds_after_there_is_space(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "egress.jsonl")
    log.append("greeting", b"one")
    size = log.path.stat().st_size
    with full_disk(size + 40), pytest.raises(SiteError, match="nothing leaves without it") as caught:
        log.append("update", b"two")
    assert caught.value.where == log.path
    assert "4,096 bytes" in str(caught.value)
    again = AuditLog(log.path)
    again.append("update", b"two")
    found = log.verify()
    assert found.ok
    assert [entry["kind"] for entry in found.entries] == ["greeting", "note", "update"]


def test_what_a_library_calls_an_os_error_is_not_told_of_the_disk(tmp_path: Path) -> None:
    def fail() -> None:
        with written_whole(tmp_path / "out", 10) as partial:
            partial.mkdir()
            raise OSError("no such model")

    with pytest.raises(OSError, match="no such model") as caught:
        fail()
    assert not isinstance(caught.value, DiskError)
    assert list(tmp_path.iterdir()) == []
