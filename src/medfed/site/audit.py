"""A site's audit log: what left, written and synced to disk *before* it leaves; append only, hash-chained.

Sizes, counts and hashes only: no patient's data, no tensor's values. :mod:`medfed.site.chain` says what a broken chain
is; a log that is broken takes no entry, and so nothing leaves until the site's people have looked at it.
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
from typing import Any

from medfed.errors import SiteError
from medfed.site.chain import Entry, Head, Verdict, entry_hash, head_path, line_of, verify
from medfed.site.settings import PRIVATE, write_file
from medfed.types import Update, component

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
        """Follow the chain; see :func:`medfed.site.chain.verify`."""
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
