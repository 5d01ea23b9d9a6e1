"""A site's audit log: what left, written and synced to disk *before* it leaves; append only, hash-chained.

Sizes, counts and hashes only: no patient's data, no tensor's values. :mod:`medfed.sites.audit` says what a broken chain
is; a log that is broken takes no entry, and so nothing leaves until the site's people have looked at it.

The hash chain of a site's audit log: entries, and what is wrong with a file of them.

A line is a JSON object that ends in the SHA-256 of itself and holds that of the line before. ``<log>.head`` holds
number and hash of the last line, so that lines cut off at the end are missed too. The head is written after the line:
a crash leaves it one line behind, or leaves part of a line that was never finished, and nothing left the site then.
Who can rewrite the whole folder can rewrite log and head together: note the report's last hash elsewhere.

``medfed site egress-report``: what left a site, by run and round, from its audit log alone.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from medfed.core.errors import SiteError
from medfed.core.types import Update, component
from medfed.sites.settings import PRIVATE, write_file

ENTRY_BYTES = 4096
LOG = "egress.jsonl"
"""The log's file in a site's folder."""


class AuditLog:
    """The log of one site. Appends of several processes wait for each other.

    Args:
        path: the log's file; made at the first append.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(
        self,
        kind: str,
        payload: bytes,
        *,
        run: str = "",
        study: str = "",
        round: int = 0,
        tensors: Iterable[str] = (),
        num_examples: int | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Write one entry and return it; only then may ``payload`` leave.

        Args:
            kind: "hello", "refusal", "update", "failure", "scores", …
            payload: the very bytes that will leave; their number and SHA-256 are written, not they.
            run: id of the run, as the server calls it.
            study: SHA-256 of the study.
            round: 1-based round number; 0 outside rounds.
            tensors: names of the tensors in the payload; counted by component.
            num_examples: examples told.
            metrics: numbers told, by name (JSON values).

        Raises:
            SiteError: the log is broken or cannot be written; nothing may leave.
        """
        facts = {
            "kind": kind,
            "run": run,
            "study": study,
            "round": round,
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
            "tensors": dict(sorted(Counter(map(component, tensors)).items())),
            "num_examples": num_examples,
            "metrics": dict(metrics or {}),
        }
        try:
            with self._locked() as file:
                return self._write(file, facts, self._end(file))
        except OSError as error:
            raise SiteError(
                f"cannot write the audit log: {error.strerror}; an entry needs some {ENTRY_BYTES:,} bytes, "
                "and nothing leaves without it",
                where=self.path,
                hint="free disk space, or mend the folder's rights",
            ) from error

    def verify(self) -> Verdict:
        """Follow the chain; see :func:`medfed.sites.audit.verify`."""
        return verify(self.path)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Yield the log's descriptor, with no other process writing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, PRIVATE)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _end(self, file: int) -> Head:
        """Follow the chain, mend what a crash left unfinished, and return number and hash of the last entry."""
        found = verify(self.path)
        if not found.ok:
            raise SiteError(
                f"the audit log is broken: {found.reason}; nothing leaves until this is cleared",
                where=f"{self.path}, line {found.line}",
                hint="find out who changed it; then keep the file as evidence and move it and its head away",
            )
        end = Head(len(found.entries) - 1, found.last)
        if not found.partial:
            return end
        os.ftruncate(file, os.fstat(file).st_size - found.partial)
        text = f"{found.partial} bytes of an unfinished line, left by a crash, were removed"
        note = self._write(file, {"kind": "note", "text": text}, end)
        return Head(note["sequence"], note["hash"])

    def _write(self, file: int, facts: Mapping[str, Any], end: Head) -> Entry:
        """Add an entry after ``end``, synced to disk, and write the head."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        fields = {"sequence": end.sequence + 1, "time": time, **facts, "previous": end.hash}
        entry = {**fields, "hash": entry_hash(fields)}
        line = line_of(entry)
        if os.write(file, line) != len(line):
            raise OSError(errno.ENOSPC, "the disk is full")
        os.fsync(file)
        head = {"sequence": entry["sequence"], "hash": entry["hash"]}
        write_file(head_path(self.path), json.dumps(head).encode() + b"\n", PRIVATE)
        return entry


def tensor_names(update: Update) -> tuple[str, ...]:
    """Return the names of an update's tensors as the log counts them: ``state/…`` before the algorithm's own."""
    own = (f"{part}/{name}" for part in ("scales", "state") for name in getattr(update, part))
    return (*update.delta, *update.buffers, *own)


START = "0" * 64
"""What the first line holds as the hash before it."""
Entry = Mapping[str, Any]
"""One line's fields; see :meth:`medfed.sites.audit.AuditLog.append`."""


class Verdict(NamedTuple):
    """What :func:`verify` found.

    Attributes:
        entries: the good lines, up to the first broken one.
        line: number of the first broken line, from 1; None if the chain holds.
        reason: what is wrong with it.
        partial: bytes of an unfinished last line that a crash left; no break of the chain.
    """

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


class Head(NamedTuple):
    """Number (from 0) and hash of the last line."""

    sequence: int
    hash: str


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


def read_head(log: Path) -> Head | None:
    """Return the head of ``log``; None where none was written yet.

    Raises:
        SiteError: it is no head.
    """
    path = head_path(log)
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Head(int(found["sequence"]), str(found["hash"]))
    except (ValueError, KeyError, TypeError) as error:
        raise SiteError(
            "not the head of an audit log", where=path, hint="restore log and head from a backup"
        ) from error


def verify(log: Path) -> Verdict:
    """Follow the chain of ``log`` and name the first line that is changed, removed, inserted or cut off.

    Raises:
        SiteError: the log's head is unreadable.
    """
    data = log.read_bytes() if log.is_file() else b""
    *lines, rest = data.split(b"\n")
    entries: list[Entry] = []
    for number, line in enumerate(lines, start=1):
        entry, reason = _read(line, entries)
        if entry is None:
            return Verdict(entries, number, reason)
        entries.append(entry)
    reason = _compare(entries, read_head(log))
    if reason:
        return Verdict(entries, len(entries) + (1 if "missing" in reason else 0), reason)
    return Verdict(entries, partial=len(rest))


def _read(line: bytes, before: list[Entry]) -> tuple[Entry | None, str]:
    """Return the line's entry, or None and what is wrong."""
    try:
        entry = json.loads(line)
        own, sequence, previous = str(entry["hash"]), int(entry["sequence"]), str(entry["previous"])
    except (ValueError, KeyError, TypeError):
        return None, "changed: it is not an entry"
    if line + b"\n" != line_of(entry) or own != entry_hash(entry):
        return None, "changed: its content does not have the hash it states"
    if sequence > len(before):
        return None, f"removed: entry {len(before)} is missing before it"
    if sequence < len(before):
        return None, f"inserted: entry {sequence} stands here a second time"
    if previous != (before[-1]["hash"] if before else START):
        return None, "does not follow the line before it: one of the two was changed, or put in its place"
    return entry, ""


def _compare(entries: list[Entry], head: Head | None) -> str:
    """Return what is wrong between the lines and the head; nothing, or the head is one line behind (a crash)."""
    if head is None:
        return "inserted: the log has several lines and its head file is gone" if len(entries) > 1 else ""
    if len(entries) <= head.sequence:
        return f"truncated: the log ended with entry {head.sequence}, which is missing"
    if entries[head.sequence]["hash"] != head.hash:
        return f"changed: entry {head.sequence} is not the one that was written"
    if len(entries) > head.sequence + 2:
        return f"inserted: the log ended with entry {head.sequence}"
    return ""


class Row(NamedTuple):
    """What left in one round of one run.

    Attributes:
        run: id of the run.
        round: round number; 0 outside rounds.
        kinds: kind → entries.
        num_bytes: bytes that left.
        num_examples: the largest number of examples told; None if none was.
        tensors: component → tensors.
        metrics: names of the numbers told, sorted.
    """

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
    tensors: Counter[str] = Counter()
    for entry in entries:
        tensors.update(entry["tensors"])
    told = [entry["num_examples"] for entry in entries if entry["num_examples"] is not None]
    return Row(
        run,
        number,
        Counter(entry["kind"] for entry in entries),
        sum(entry["bytes"] for entry in entries),
        max(told, default=None),
        tensors,
        sorted({name for entry in entries for name in entry["metrics"]}),
    )
