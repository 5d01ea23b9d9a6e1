"""A site's audit log: what left, written and synced to disk *before* it leaves; append only, hash-chained.

It holds sizes, counts and hashes only: no patient's data, no tensor's values. A line is a JSON object. It ends in the
SHA-256 of itself and holds that of the line before. ``<log>.head`` holds number and hash of the last line, so a log cut
off at its end is noticed too. The head is written after the line. A crash leaves it one line behind, or leaves part of
a line that was never finished; nothing left the site then. A broken log takes no entry: nothing leaves until the site's
people have looked at it. A person who can rewrite the whole folder can rewrite log and head together. Note the
report's last hash elsewhere.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from medfed.core.errors import DiskError, SiteError
from medfed.core.files import PRIVATE, locked, write_whole
from medfed.core.types import Update, component

ENTRY_BYTES = 4096
LOG = "egress.jsonl"
"""The log's file in a site's folder."""
START = "0" * 64
"""The first line holds it as the hash before it."""
Entry = Mapping[str, Any]
"""One line's fields."""


@dataclass(frozen=True)
class Facts:
    """The facts of an entry: run, SHA-256 of the study, round from 1 (0 outside rounds). Of the payload: its tensors,
    which are counted by component, its examples, and its numbers (JSON values)."""

    run: str = ""
    study: str = ""
    round: int = 0
    tensors: tuple[str, ...] = ()
    num_examples: int | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


NOTHING = Facts()


class Head(NamedTuple):
    """Number (from 0) and hash of the last line."""

    sequence: int
    hash: str


class Verdict(NamedTuple):
    """The result of following a log's chain: the good lines, and the number (from 1) and fault of the first broken one.
    ``partial`` are the bytes of an unfinished last line that a crash left; they are no break of the chain."""

    entries: list[Entry]
    line: int | None = None
    reason: str = ""
    partial: int = 0

    @property
    def ok(self) -> bool:
        """Whether the chain holds."""
        return self.line is None

    @property
    def last(self) -> str:
        """Hash of the last good line."""
        return str(self.entries[-1]["hash"]) if self.entries else START


class AuditLog:
    """The log of one site at ``path``, made at the first append. Appends of several processes wait for each other."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, kind: str, payload: bytes, facts: Facts = NOTHING) -> Entry:
        """Write an entry of number and SHA-256 of the very bytes that will leave; only then may ``payload`` leave.

        ``kind`` is "greeting", "update", "failure", "scores", … Raises SiteError if the log is broken or cannot be
        written: nothing may leave."""
        counts = dict(sorted(Counter(map(component, facts.tensors)).items()))
        size = {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
        place = {"kind": kind, "run": facts.run, "study": facts.study, "round": facts.round}
        content = {"tensors": counts, "num_examples": facts.num_examples, "metrics": dict(facts.metrics)}
        try:
            with self._opened() as file:
                return self._write(file, {**place, **size, **content}, self._end(file))
        except (OSError, DiskError) as error:
            why = error.strerror if isinstance(error, OSError) else error.what
            raise SiteError(
                f"cannot write the audit log: {why}; an entry needs some {ENTRY_BYTES:,} bytes, and nothing leaves "
                "without it",
                where=self.path,
                hint="free disk space, or correct the folder's rights",
            ) from error

    def verify(self) -> Verdict:
        """Follow the chain and name the first line that is changed, removed, inserted or cut off. Raises SiteError if
        the log's head is unreadable."""
        *lines, rest = (self.path.read_bytes() if self.path.is_file() else b"").split(b"\n")
        entries: list[Entry] = []
        for number, line in enumerate(lines, start=1):
            entry, reason = _parsed(line, entries)
            if entry is None:
                return Verdict(entries, number, reason)
            entries.append(entry)
        if reason := _compare(entries, _head(self.path)):
            return Verdict(entries, len(entries) + (1 if "missing" in reason else 0), reason)
        return Verdict(entries, partial=len(rest))

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Yield the log's descriptor, with no other process writing."""
        with (
            locked(self.path.with_name(f".{self.path.name}.lock")),
            open(self.path, "ab", opener=lambda name, flags: os.open(name, flags, PRIVATE)) as file,
        ):
            yield file.fileno()

    def _end(self, file: int) -> Head:
        """Follow the chain, remove what a crash left unfinished, and return number and hash of the last entry."""
        verdict = self.verify()
        if not verdict.ok:
            raise SiteError(
                f"the audit log is broken: {verdict.reason}; nothing leaves until this is cleared",
                where=f"{self.path}, line {verdict.line}",
                hint="find out who changed it; then keep the file as evidence and move it and its head away",
            )
        end = Head(len(verdict.entries) - 1, verdict.last)
        if not verdict.partial:
            return end
        os.ftruncate(file, os.fstat(file).st_size - verdict.partial)
        text = f"{verdict.partial} bytes of an unfinished line, left by a crash, were removed"
        note = self._write(file, {"kind": "note", "text": text}, end)
        return Head(note["sequence"], note["hash"])

    def _write(self, file: int, fields: Mapping[str, Any], end: Head) -> Entry:
        """Add an entry after ``end``, synced to disk, and write the head."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"sequence": end.sequence + 1, "time": time, **fields, "previous": end.hash}
        entry["hash"] = entry_hash(entry)
        line = line_of(entry)
        if os.write(file, line) != len(line):
            raise OSError(errno.ENOSPC, "the disk is full")
        os.fsync(file)
        head = {name: entry[name] for name in Head._fields}
        write_whole(head_path(self.path), json.dumps(head) + "\n", PRIVATE)
        return entry


def tensor_names(update: Update) -> tuple[str, ...]:
    """Return the names of an update's tensors as the log counts them: ``state/…`` before the algorithm's own."""
    private = (f"{part}/{name}" for part in ("scales", "state") for name in getattr(update, part))
    return (*update.delta, *update.buffers, *private)


def entry_hash(entry: Entry) -> str:
    """Return the SHA-256 in hex of an entry's fields but ``hash``."""
    fields = {name: value for name, value in entry.items() if name != "hash"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def line_of(entry: Entry) -> bytes:
    """Return the entry's line."""
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def head_path(log: Path) -> Path:
    """Return where the head of ``log`` lies."""
    return log.with_name(log.name + ".head")


def _parsed(line: bytes, before: list[Entry]) -> tuple[Entry | None, str]:
    """Return the line's entry, or None and what is wrong."""
    try:
        entry = json.loads(line)
        stated, sequence, previous = str(entry["hash"]), int(entry["sequence"]), str(entry["previous"])
    except (ValueError, KeyError, TypeError):
        return None, "changed: it is not an entry"
    if line + b"\n" != line_of(entry) or stated != entry_hash(entry):
        return None, "changed: its content does not have the hash it states"
    if sequence > len(before):
        return None, f"removed: entry {len(before)} is missing before it"
    if sequence < len(before):
        return None, f"inserted: entry {sequence} is here a second time"
    if previous != (before[-1]["hash"] if before else START):
        return None, "does not follow the line before it: one of the two was changed, or put in its place"
    return entry, ""


def _head(log: Path) -> Head | None:
    """Return the head of ``log``; None where none was written yet."""
    path = head_path(log)
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Head(int(fields["sequence"]), str(fields["hash"]))
    except (ValueError, KeyError, TypeError) as error:
        hint = "restore log and head from a backup"
        raise SiteError("not the head of an audit log", where=path, hint=hint) from error


def _compare(entries: list[Entry], head: Head | None) -> str:
    """Return what is wrong between the lines and the head; nothing, or the head is one line behind (a crash)."""
    if head is None:
        return "inserted: the log has several lines and its head file is gone" if len(entries) > 1 else ""
    if len(entries) <= head.sequence:
        return f"truncated: the log ended with entry {head.sequence}, which is missing"
    if entries[head.sequence]["hash"] != head.hash:
        return f"changed: entry {head.sequence} is not the one that was written"
    return f"inserted: the log ended with entry {head.sequence}" if len(entries) > head.sequence + 2 else ""


class Row(NamedTuple):
    """A line of the egress report, on a round of a run (0 outside rounds): what left, counted by kind and component.
    ``num_examples`` is the largest number of examples that left, ``metrics`` are the names of numbers, sorted."""

    run: str
    round: int
    kinds: Counter[str]
    num_bytes: int
    num_examples: int | None
    tensors: Counter[str]
    metrics: list[str]


def egress_rows(entries: Iterable[Entry]) -> list[Row]:
    """Return a row for every run and round, in order of their first entry; notes of the log itself do not count."""
    groups: dict[tuple[str, int], list[Entry]] = {}
    for entry in entries:
        if "bytes" in entry:
            groups.setdefault((entry["run"], entry["round"]), []).append(entry)
    return [_row(run, number, group) for (run, number), group in groups.items()]


def _row(run: str, number: int, entries: list[Entry]) -> Row:
    kinds, tensors = Counter(entry["kind"] for entry in entries), Counter[str]()
    for entry in entries:
        tensors.update(entry["tensors"])
    examples = [entry["num_examples"] for entry in entries if entry["num_examples"] is not None]
    metrics = sorted({name for entry in entries for name in entry["metrics"]})
    num_bytes = sum(entry["bytes"] for entry in entries)
    return Row(run, number, kinds, num_bytes, max(examples, default=None), tensors, metrics)
