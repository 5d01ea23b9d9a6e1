"""Errors a user can act on: what is wrong, where, and the next step.

The command prints one as a single message and exits with its status: 1, or 3 where too few sites came.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

__all__ = [
    "DataError",
    "DiskError",
    "MedfedError",
    "PluginError",
    "PolicyError",
    "RunError",
    "SiteError",
    "StudyError",
    "TooFewSitesError",
    "UpdateRejectedError",
]


class MedfedError(Exception):
    """A mistake in input, not in medfed: ``what`` is wrong, with the offending value and what is allowed. ``where`` is
    the file, field, client or tensor concerned, ``hint`` the next step."""

    exit_status: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str | Path | None = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        place = f"{where}: " if where is not None else ""
        step = f"\n  next step: {hint}" if hint else ""
        super().__init__(f"{place}{what}{step}")


class StudyError(MedfedError):
    """A study file or a ``--set`` override is wrong."""


class PluginError(MedfedError):
    """A plugin is absent, fails, changed, or is not allowed here."""


class DataError(MedfedError):
    """A dataset's folder, table or file is wrong."""


class UpdateRejectedError(MedfedError):
    """A client's update failed the gate; the round goes on without it."""


class RunError(MedfedError):
    """A run cannot go on, or its folder is not what it should be."""


class DiskError(RunError):
    """A file cannot be written (what it was to replace is intact), or does not hold what was written."""


class SiteError(MedfedError):
    """A hospital's or a federation's folder, certificate, key or audit log is wrong."""


class PolicyError(SiteError):
    """A site's policy does not allow it; nothing has left."""


class TooFewSitesError(RunError):
    """Fewer sites came, or stayed, than the federation needs."""

    exit_status: ClassVar[int] = 3
