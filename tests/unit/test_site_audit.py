"""The audit log: what leaves is written first; every kind of tampering is found, and a crash is not taken for one."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medfed.core.errors import SiteError
from medfed.core.types import Update
from medfed.sites.audit import AuditLog, Facts, egress_rows, entry_hash, head_path, line_of, tensor_names

Lines = list[bytes]


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    """A log of six entries: round 0 and five rounds."""
    made = AuditLog(tmp_path / "egress.jsonl")
    for number in range(6):
        facts = Facts(run="r", study="s", round=number, tensors=("heads.cd.w",), num_examples=7)
        made.append("update", b"x" * number, facts)
    return made


def change(line: bytes, **fields: object) -> bytes:
    """Return the line with other fields and a hash that fits them, as someone who knows the format would."""
    entry = {**json.loads(line), **fields}
    return line_of({**entry, "hash": entry_hash(entry)})


def drop(lines: Lines, *numbers: int) -> Lines:
    return [line for number, line in enumerate(lines) if number not in numbers]


def renumbered(lines: Lines) -> Lines:
    return [change(line, sequence=number) for number, line in enumerate(lines)]


TAMPERINGS: dict[str, tuple[Callable[[Lines], Lines], int, str]] = {
    "a byte of a number": (lambda x: [*x[:2], x[2].replace(b'"bytes": 2', b'"bytes": 1'), *x[3:]], 3, "changed"),
    "a space": (lambda x: [*x[:2], x[2].replace(b'"round": 2', b'"round":  2'), *x[3:]], 3, "changed"),
    "a line that is no JSON": (lambda x: [*x[:2], b"nonsense\n", *x[3:]], 3, "changed"),
    "an empty line": (lambda x: [*x[:2], b"\n", *x[2:]], 3, "changed"),
    "a content with its hash": (lambda x: [*x[:2], change(x[2], bytes=1), *x[3:]], 4, "does not follow"),
    "the last content with its hash": (lambda x: [*x[:5], change(x[5], bytes=1)], 6, "not the one that was written"),
    "a line removed": (lambda x: drop(x, 2), 3, "removed: entry 2"),
    "the first line removed": (lambda x: drop(x, 0), 1, "removed: entry 0"),
    "a line removed, the rest renumbered": (lambda x: renumbered(drop(x, 2)), 3, "does not follow"),
    "a line twice": (lambda x: [*x[:3], x[2], *x[3:]], 4, "inserted: entry 2"),
    "a line put between": (lambda x: renumbered([*x[:3], x[1], *x[3:]]), 4, "does not follow"),
    "two lines changed over": (lambda x: [*x[:2], x[3], x[2], *x[4:]], 3, "removed: entry 2"),
    "the last line cut off": (lambda x: x[:5], 6, "truncated"),
    "half of the last line cut off": (lambda x: [*x[:5], x[5][:40]], 6, "truncated"),
    "everything cut off": (lambda x: [], 1, "truncated"),
}


@pytest.mark.parametrize("kind", TAMPERINGS)
def test_the_first_broken_line_is_named_and_nothing_more_leaves(log: AuditLog, kind: str) -> None:
    tamper, line, reason = TAMPERINGS[kind]
    assert log.verify().ok
    lines = tamper(log.path.read_bytes().splitlines(keepends=True))
    log.path.write_bytes(b"".join(lines))
    found = log.verify()
    assert not found.ok
    assert reason in found.reason
    assert found.line == line
    with pytest.raises(SiteError, match="nothing leaves"):
        log.append("update", b"")


def test_lines_that_fit_are_found_where_the_head_says_the_log_ended(log: AuditLog) -> None:
    """Somebody who knows the format can add lines that follow, but the head tells where the site's own log ended."""
    head = head_path(log.path).read_bytes()
    for _ in range(2):
        log.append("update", b"")
    head_path(log.path).write_bytes(head)
    assert "inserted: the log ended with entry 5" in log.verify().reason


def test_a_log_without_its_head_is_broken(log: AuditLog) -> None:
    head_path(log.path).unlink()
    assert "head file is gone" in log.verify().reason
    head_path(log.path).write_text("{}")
    with pytest.raises(SiteError, match="not the head"):
        log.verify()


def test_a_log_moved_away_is_missed(log: AuditLog) -> None:
    log.path.unlink()
    assert log.verify().reason.startswith("truncated")


@pytest.mark.parametrize("length", [1, 40, -1])
def test_a_line_that_a_crash_left_unfinished_is_removed_and_noted(log: AuditLog, length: int) -> None:
    line = log.path.read_bytes().splitlines()[-1]
    with log.path.open("ab") as file:
        file.write(line[:length])
    assert log.verify().ok
    assert log.verify().partial == len(line[:length])
    again = AuditLog(log.path)
    again.append("update", b"", Facts(round=6))
    found = again.verify()
    assert (found.ok, found.partial, len(found.entries)) == (True, 0, 8)
    assert found.entries[6]["kind"] == "note"
    assert str(len(line[:length])) in found.entries[6]["text"]


def test_a_crash_between_line_and_head_is_no_tampering(log: AuditLog) -> None:
    head = head_path(log.path).read_bytes()
    log.append("update", b"", Facts(round=6))
    head_path(log.path).write_bytes(head)
    assert log.verify().ok
    AuditLog(log.path).append("update", b"", Facts(round=7))
    assert len(log.verify().entries) == 8


def test_two_writers_of_one_log_follow_each_other(log: AuditLog) -> None:
    other = AuditLog(log.path)
    for writer in (other, log, other, log):
        writer.append("update", b"")
    assert log.verify().ok
    assert len(log.verify().entries) == 10


def test_a_full_disk_lets_nothing_leave(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(SiteError, match=r"No space left.*nothing leaves without it"):
            log.append("update", b"")
    log.append("update", b"")
    assert len(log.verify().entries) == 7


def test_half_a_line_on_a_full_disk_is_removed_by_the_next_entry(
    log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, data: write(file, data[:30]))
        with pytest.raises(SiteError, match="full"):
            log.append("update", b"")
    log.append("update", b"")
    assert [entry["kind"] for entry in log.verify().entries[6:]] == ["note", "update"]


def test_an_entry_is_on_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), sync(file)))
    AuditLog(tmp_path / "egress.jsonl").append("update", b"")
    assert str(tmp_path / "egress.jsonl") in synced


def test_an_update_is_counted_by_component_and_holds_no_value(tmp_path: Path) -> None:
    secret = 0.123456789
    update = Update(
        client="site-0",
        round=2,
        base="base",
        delta={name: torch.full((1,), secret) for name in ("encoders.ecg.a", "encoders.ecg.b", "heads.ead.w")},
        num_examples=31,
        num_steps=4,
        scales={"encoders.ecg.a": torch.full((1,), secret)},
        state={"encoders.ecg.a": torch.full((1,), secret)},
        metrics={"loss.ead": 0.5, "upload_error.encoders.ecg": 0.25},
    )
    made = AuditLog(tmp_path / "egress.jsonl")
    made.append("update", b"payload", Facts(tensors=tensor_names(update), num_examples=31, metrics=update.metrics))
    (entry,) = made.verify().entries
    assert entry["tensors"] == {"encoders.ecg": 2, "heads.ead": 1, "scales/encoders.ecg": 1, "state/encoders.ecg": 1}
    assert (entry["bytes"], entry["num_examples"], entry["metrics"]) == (7, 31, update.metrics)
    assert entry["sha256"] == "239f59ed55e737c77147cf55ad0c1b030b6d7ee748a7426952f9b852d5a935e5"
    assert str(secret) not in made.path.read_text()


def test_the_report_counts_by_run_and_round_and_leaves_notes_out(log: AuditLog) -> None:
    log.append("hello", b"12", Facts(run="other", num_examples=9))
    with log.path.open("ab") as file:
        file.write(b"half")
    tensors = ("heads.cd.w", "encoders.image.w")
    facts = Facts(run="r", round=5, tensors=tensors, num_examples=8, metrics={"loss.cd": 0.5})
    log.append("update", b"123", facts)
    rows = egress_rows(log.verify().entries)
    assert [(row.run, row.round) for row in rows] == [*(("r", number) for number in range(6)), ("other", 0)]
    assert (rows[5].num_bytes, rows[5].num_examples, rows[5].kinds["update"]) == (8, 8, 2)
    assert rows[5].metrics == ["loss.cd"]
    assert rows[5].tensors == {"heads.cd": 2, "encoders.image": 1}
    assert sum(row.num_bytes for row in rows) == 0 + 1 + 2 + 3 + 4 + 8 + 2
