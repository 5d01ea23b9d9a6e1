"""The hash chain of a site's audit log: entries, and what is wrong with a file of them.

A line is a JSON object that ends in the SHA-256 of itself and holds that of the line before. ``<log>.head`` holds
number and hash of the last line, so that lines cut off at the end are missed too. The head is written after the line:
a crash leaves it one line behind, or leaves part of a line that was never finished, and nothing left the site then.
Who can rewrite the whole folder can rewrite log and head together: note the report's last hash elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medfed.errors import SiteError

START = "0" * 64
"""What the first line holds as the hash before it."""

Entry = Mapping[str, Any]
"""One line's fields; see :meth:`medfed.site.audit.AuditLog.append`."""


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
