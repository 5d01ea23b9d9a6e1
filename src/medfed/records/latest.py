"""Runs by what a person calls them: ``latest``, a study's name, or a folder."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from medfed.core.errors import RunError
from medfed.records.folder import RunFolder
from medfed.records.schema import StudyFile

LATEST = "latest"


class RunRow(NamedTuple):
    """A run in a listing."""

    run: str
    study: str
    job: str
    state: str
    written: str


def listed_runs(runs: Path) -> list[RunRow]:
    """Return every run below ``runs``, the last written first."""
    return [_row(folder) for folder in _folders(runs)]


def find_run(given: Path, runs: Path = Path("runs")) -> Path:
    """Return the run folder that ``given`` names: a folder, ``latest``, or a study's name for its latest finished run.

    Raises:
        RunError: nothing finished goes by that name.
    """
    if given.is_dir() or len(given.parts) != 1:
        return given
    for folder in _folders(runs):
        if (folder / "DONE").is_file() and given.name in (LATEST, folder.parent.name):
            return folder
    raise RunError("no finished run goes by this name", where=given, hint=f"medfed runs --runs {runs} lists them")


def _folders(runs: Path) -> list[Path]:
    folders = [path.parent for path in runs.glob("*/*/study.json")]
    return sorted(folders, key=lambda folder: (_written(folder), folder.name), reverse=True)


def _written(folder: Path) -> float:
    marker = folder / "DONE"
    return (marker if marker.is_file() else folder / "study.json").stat().st_mtime


def _row(folder: Path) -> RunRow:
    try:
        job = RunFolder(folder).read(StudyFile).job
    except RunError:
        job = "unreadable"
    state = "finished" if (folder / "DONE").is_file() else "to be resumed"
    written = datetime.fromtimestamp(_written(folder)).astimezone().isoformat(sep=" ", timespec="seconds")
    return RunRow(str(folder), folder.parent.name, job, state, written)
