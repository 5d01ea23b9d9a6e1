"""Where a federation's run stands: ``status.json`` in its folder, written whole at every change.

The server writes it while it serves; ``medfed federation status`` reads it, then and afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from medfed.errors import SiteError
from medfed.rundir import RunDir
from medfed.site.lock import is_held
from medfed.site.settings import write_file

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
    records = RunDir(Path(run)).read_records("rounds.jsonl") if run else []
    return max((record["round"] for record in records), default=0)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
