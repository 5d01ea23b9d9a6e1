"""Where a federation's run stands: ``status.json`` in its folder, written whole at every change.

The server writes it while it serves; ``medfed federation status`` reads it, then and afterwards.

How a server's or a site's process ends, as its exit status and ``status.json`` tell.

======  =====================================================================
status  meaning
======  =====================================================================
0       done
1       an error; the message says which
3       too few sites came or stayed
130     interrupted (Ctrl-C); the same command goes on from the last checkpoint
143     SIGTERM; likewise
======  =====================================================================

One process a folder: two servers would write one run, two sites would answer with one key.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from medfed.core.errors import MedfedError, SiteError, TooFewSitesError
from medfed.records.folder import RunFolder
from medfed.records.schema import Round
from medfed.sites.settings import PRIVATE, write_file

STATUS = "status.json"
State = Literal["waiting", "hello", "training", "evaluating", "done", "failed", "too few sites", "stopped"]
OVER: tuple[State, ...] = ("done", "failed", "too few sites", "stopped")
KEPT = 20
"""Failures that are kept, newest last."""


class SiteFailure(BaseModel):
    """A site that gave no usable answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str
    round: int
    phase: str
    reason: str


class Status(BaseModel):
    """Where the run stands.

    Attributes:
        state: what the server is doing.
        round: the round it is in, from 1; 0 before the first.
        num_rounds: rounds of the study.
        sites: site → when it was last heard of (UTC), or None if never.
        failures: the last failures, newest last.
        run: the run folder.
        reason: why the run ended, where it did not end well.
        updated: when this was written (UTC).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: State = "waiting"
    round: int = 0
    num_rounds: int = 0
    sites: Mapping[str, str | None] = {}
    failures: tuple[SiteFailure, ...] = ()
    run: str = ""
    reason: str = ""
    updated: str = ""

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.state in OVER


class StatusFile:
    """The writer of ``status.json``.

    Args:
        root: the federation's folder.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / STATUS
        self.status = Status()

    def update(self, **fields: object) -> None:
        """Change some fields of :class:`Status` and write the file."""
        changed = {**self.status.model_dump(), **fields, "updated": _now()}
        self.status = Status.model_validate(changed)
        with suppress(OSError):  # a full disk, say, is told where results are written, not here
            write_file(self._path, self.status.model_dump_json(indent=1).encode() + b"\n")

    def seen(self, site: str) -> None:
        """Note that ``site`` was heard of now."""
        self.update(sites=dict(sorted({**self.status.sites, site: _now()}.items())))

    def failed(self, failure: SiteFailure) -> None:
        """Note that a site gave no usable answer."""
        self.update(failures=(*self.status.failures, failure)[-KEPT:])


def read_status(root: Path) -> Status:
    """Read where the run of the federation in ``root`` stands.

    Raises:
        SiteError: it was never started, or the file is not what was written.
    """
    path = root / STATUS
    try:
        return Status.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise SiteError("never started", where=root, hint=f"medfed federation start {root}") from error
    except (OSError, ValidationError) as error:
        raise SiteError("not a status file", where=path, hint="start the federation again") from error


def status_lines(root: Path) -> Iterator[str]:
    """Yield what a person wants to know of the run of the federation in ``root``.

    Raises:
        SiteError: it was never started.
    """
    found, running = read_status(root), is_held(root)
    gone = "" if running or found.over else "; its process is gone, start it again to go on"
    yield f"{found.state}{gone} (written {found.updated or 'at an unknown time'})"
    if found.reason:
        yield found.reason
    yield f"round {max(found.round, _logged(found.run))} of {found.num_rounds or '?'}"
    yield from (
        f"site {name}: {f'heard of {seen}' if seen else 'never heard of'}" for name, seen in found.sites.items()
    )
    for failure in found.failures:
        yield f"failure in round {failure.round}: {failure.site} ({failure.phase}): {failure.reason}"
    yield f"run folder: {found.run or 'none yet'}"


def _logged(run: str) -> int:
    """Return the last round in the run folder's log: a server that was started again may have none left to do."""
    lines = RunFolder(Path(run)).lines(Round) if run else []
    return max((line.round for line in lines), default=0)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


TERMINATED = 143


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM leave the block as an exception, so that what is open is closed, with exit status 143."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def noted(root: Path) -> Iterator[None]:
    """Write into ``status.json`` how the block ended."""
    try:
        yield
    except TooFewSitesError as error:
        _note(root, "too few sites", str(error))
        raise
    except MedfedError as error:
        _note(root, "failed", str(error))
        raise
    except (KeyboardInterrupt, SystemExit):
        _note(root, "stopped", "the same command goes on from the last checkpoint")
        raise
    except BaseException as error:
        _note(root, "failed", repr(error))
        raise
    _note(root, "done", "")


def _note(root: Path, state: State, reason: str) -> None:
    try:
        before = read_status(root)
    except SiteError:
        before = Status()
    after = before.model_copy(update={"state": state, "reason": reason})
    with suppress(OSError):  # a full disk, say: the error that ends the process must be told, not this one
        write_file(root / STATUS, after.model_dump_json(indent=1).encode() + b"\n")


LOCK = ".lock"


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold the folder ``root`` while the block runs; the system lets go of it when the process dies.

    Raises:
        SiteError: another process holds it.
    """
    file = os.open(root / LOCK, os.O_RDWR | os.O_CREAT, PRIVATE)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SiteError("another process runs on this folder", where=root, hint="stop that one first") from error
        yield
    finally:
        os.close(file)


def is_held(root: Path) -> bool:
    """Whether a process runs on the folder ``root``."""
    try:
        with only_one(root):
            return False
    except SiteError:
        return True
