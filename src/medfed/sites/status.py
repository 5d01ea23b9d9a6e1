"""Where a federation's run stands (``status.json``), how a process ends, and the lock that lets one run per folder.

The server writes ``status.json`` whole at every change. A server's or a site's process ends with 0 (done), 1 (an
error), 3 (too few sites came or stayed), 130 (Ctrl-C) or 143 (SIGTERM). After the last two the same command goes on
from the last checkpoint.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from medfed.core.errors import DiskError, MedfedError, SiteError, TooFewSitesError
from medfed.core.files import PUBLIC, locked, write_whole
from medfed.records.folder import RunFolder
from medfed.records.schema import Round
from medfed.study.parts import SettingsModel

STATUS, LOCK = "status.json", ".lock"
State = Literal["waiting", "hello", "training", "done", "failed", "too few sites", "stopped"]
OVER: tuple[State, ...] = ("done", "failed", "too few sites", "stopped")
KEPT = 20
"""Failures that are kept, newest last."""
TERMINATED = 143


class SiteFailure(SettingsModel):
    """A site that gave no usable answer."""

    site: str
    round: int
    phase: str
    reason: str


class Status(SettingsModel):
    """Where the run stands: its round from 1 (0 before the first), and when each site was last heard of (UTC, or None).
    The last failures are newest last. ``reason`` says why it ended, where it did not end well."""

    state: State = "waiting"
    round: int = 0
    num_rounds: int = 0
    sites: Mapping[str, str | None] = {}
    failures: tuple[SiteFailure, ...] = ()
    run: str = ""
    reason: str = ""
    updated: str = ""


class StatusFile:
    """The writer of ``status.json`` in the federation's folder ``root``; it begins with ``status``."""

    def __init__(self, root: Path, status: Status | None = None) -> None:
        self._path = root / STATUS
        self.status = status or Status()

    def update(self, **fields: object) -> None:
        """Change some fields of :class:`Status` and write the file."""
        self.status = Status.model_validate({**self.status.model_dump(), **fields, "updated": _now()})
        with suppress(DiskError):  # a full disk, say, is an error where results are written, not here
            write_whole(self._path, self.status.model_dump_json(indent=1) + "\n", PUBLIC)

    def seen(self, site: str) -> None:
        """Note that ``site`` was heard of now."""
        self.update(sites=dict(sorted({**self.status.sites, site: _now()}.items())))

    def failed(self, failure: SiteFailure) -> None:
        """Note that a site gave no usable answer."""
        self.update(failures=(*self.status.failures, failure)[-KEPT:])


def read_status(root: Path) -> Status:
    """Read where the run of the federation in ``root`` stands. Raises SiteError if it was never started, or the file is
    not what was written."""
    path = root / STATUS
    try:
        return Status.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise SiteError("never started", where=root, hint=f"medfed federation start {root}") from error
    except (OSError, ValidationError) as error:
        raise SiteError("not a status file", where=path, hint="start the federation again") from error


def status_lines(root: Path) -> Iterator[str]:
    """Yield what a person wants to know of the run in ``root``. Raises SiteError if it was never started."""
    status = read_status(root)
    gone = "" if status.state in OVER or is_held(root) else "; its process is gone, start it again to go on"
    yield f"{status.state}{gone} (written {status.updated or 'at an unknown time'})"
    if status.reason:
        yield status.reason
    yield f"round {max(status.round, _last_round(status.run))} of {status.num_rounds or '?'}"
    for name, seen in status.sites.items():
        yield f"site {name}: {f'heard of {seen}' if seen else 'never heard of'}"
    for failure in status.failures:
        yield f"failure in round {failure.round}: {failure.site} ({failure.phase}): {failure.reason}"
    yield f"run folder: {status.run or 'none yet'}"


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM leave the block as an exception, so that what is open is closed, with exit status 143."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def noted(root: Path) -> Iterator[None]:
    """Write into ``status.json`` how the block ended."""
    state: State = "done"
    reason = ""
    try:
        yield
    except BaseException as error:
        state, reason = _ending(error)
        raise
    finally:
        before = None
        with suppress(SiteError):
            before = read_status(root)
        StatusFile(root, before).update(state=state, reason=reason)


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold the folder ``root`` while the block runs: two servers would write one run, two sites use one key. Raises
    SiteError if another process holds it; the system frees the lock of a process that died."""
    with locked(root / LOCK, waiting=False) as held:
        if not held:
            raise SiteError("another process runs on this folder", where=root, hint="stop that one first")
        yield


def is_held(root: Path) -> bool:
    """Whether a process runs on the folder ``root``."""
    with locked(root / LOCK, waiting=False) as free:
        return not free


def _ending(error: BaseException) -> tuple[State, str]:
    """Return the state and the reason that ``error`` leaves."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "stopped", "the same command goes on from the last checkpoint"
    if isinstance(error, TooFewSitesError):
        return "too few sites", str(error)
    return "failed", str(error) if isinstance(error, MedfedError) else repr(error)


def _last_round(run: str) -> int:
    """Return the last round in the run folder's log: a server that was started again may have none left to do."""
    return max((line.round for line in RunFolder(Path(run)).lines(Round)), default=0) if run else 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
