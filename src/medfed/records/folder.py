"""The run folder: the only reader and writer of a run's JSON files, through :mod:`medfed.records.schema`.

A file appears whole or not at all. Wall-clock facts live in ``timings.jsonl``, ``provenance.json`` and the report.
Every other file of a resumed run equals an uninterrupted run's bit for bit. Version 1 is read as today's records.
A person calls a run ``latest``, by its study's name, or by its folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from medfed.core.errors import RunError
from medfed.core.files import write_whole
from medfed.records.legacy import upgraded_file, upgraded_line
from medfed.records.schema import SCHEMA_VERSION, File, Line, Prediction, StudyFile

F = TypeVar("F", bound=File)
L = TypeVar("L", bound=Line)
LATEST = "latest"


class RunFolder:
    """One run's folder, ``runs/<study>/<hash8>-seed<n>``; it need not exist."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def done(self) -> bool:
        """Whether the run finished; the marker is written last."""
        return (self.root / "DONE").is_file()

    def finish(self) -> None:
        """Write the marker of a finished run."""
        write_whole(self.root / "DONE", b"")

    def require_done(self) -> None:
        """Raise RunError if the run did not finish, or another version of medfed wrote it."""
        self.check_version()
        if not self.done:
            hint = "finish it: medfed run STUDY goes on from its checkpoint"
            raise RunError("not a finished run", where=self.root, hint=hint)

    def check_version(self) -> None:
        """Raise RunError if another version of medfed wrote the folder; one without ``study.json`` passes."""
        if self.exists(StudyFile.NAME):
            _check_version(self._json(StudyFile.NAME), self.root)

    def exists(self, name: str) -> bool:
        """Whether the file ``name`` is there."""
        return (self.root / name).is_file()

    def write(self, record: File) -> None:
        """Write a file."""
        write_whole(self.root / record.NAME, file_bytes(record))

    def read(self, kind: type[F]) -> F:
        """Read a file. Raises RunError if it is absent, not what was written, or another version of medfed wrote it."""
        value = self._json(kind.NAME)
        _check_version(value, self.root)
        try:
            return kind.model_validate(upgraded_file(kind, value, self.root))
        except ValidationError as error:
            raise _unreadable(self.root / kind.NAME, first_problem(error)) from error

    def write_lines(self, lines: Iterable[Line], name: str | None = None) -> None:
        """Write lines as one file, which has the kind's name or ``name``."""
        records = list(lines)
        write_whole(self.root / (name or records[0].NAME), lines_bytes(records))

    def append(self, kind: type[L], lines: Iterable[L]) -> None:
        """Add lines to their file, whole or not at all; without a line the file is made, empty."""
        path = self.root / kind.NAME
        before = path.read_bytes() if path.is_file() else b""
        write_whole(path, before + lines_bytes(lines))

    def lines(self, kind: type[L], name: str | None = None) -> list[L]:
        """Read the lines of a kind's file, or of ``name``; an absent file has none.

        Raises RunError if a line is not what was written, or another version of medfed wrote the folder.
        """
        path = self.root / (name or kind.NAME)
        if not path.is_file():
            return []
        self.check_version()
        records = []
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                records.append(line_of(kind, text))
            except ValueError as error:
                raise _unreadable(path, f"line {number}: {first_problem(error)}") from error
        return records

    def drop_after(self, kind: type[Line], round_number: int) -> None:
        """Forget the lines of rounds after ``round_number``: they are about to be computed again."""
        records = self.lines(kind)
        kept = [line for line in records if getattr(line, "round", 0) <= round_number]
        if len(kept) < len(records):
            self.write_lines(kept, kind.NAME)

    def predictions(self, task: str) -> list[Prediction]:
        """Read the predictions of one task; none if the file is absent."""
        return self.lines(Prediction, prediction_file(task))

    def write_text(self, name: str, text: str) -> None:
        """Write ``text`` as ``name``."""
        write_whole(self.root / name, text.encode())

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.root / name).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError("absent", where=self.root / name, hint="pass runs/<study>/<hash>-seed<n>") from error
        except (OSError, ValueError) as error:
            raise _unreadable(self.root / name, str(error)) from error


def prediction_file(task: str) -> str:
    """Return the name of the file with the predictions of ``task``."""
    return f"predictions/{task}.jsonl"


def line_of(kind: type[L], text: str) -> L:
    """Return a line as a record. Raises ValueError if it is not JSON, or not of this kind."""
    return kind.model_validate(upgraded_line(kind, json.loads(text)))


def file_bytes(record: File) -> bytes:
    """Return a file's content."""
    return (json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode()


def lines_bytes(lines: Iterable[Line]) -> bytes:
    """Return the content of a JSON-lines file; what a line has not set is left out."""
    dumped = (line.model_dump(mode="json", exclude_unset=True) for line in lines)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in dumped).encode()


def first_problem(error: Exception) -> str:
    """Return what is wrong with a file in one line."""
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    return f"not JSON: {error}"


def listed_runs(runs: Path) -> list[dict[str, str]]:
    """Return the folder, study, job, state and time of every run below ``runs``, the last written first."""
    return [_row(folder) for folder in _folders(runs)]


def find_run(given: Path, runs: Path = Path("runs")) -> Path:
    """Return the run folder that ``given`` names: a folder, ``latest``, or a study's name for its latest finished run.

    Raises RunError if nothing finished goes by that name.
    """
    if given.is_dir() or len(given.parts) != 1:
        return given
    for folder in _folders(runs):
        if RunFolder(folder).done and given.name in (LATEST, folder.parent.name):
            return folder
    raise RunError("no finished run goes by this name", where=given, hint=f"medfed runs --runs {runs} lists them")


def _folders(runs: Path) -> list[Path]:
    folders = [path.parent for path in runs.glob("*/*/study.json")]
    return sorted(folders, key=lambda folder: (_written(folder), folder.name), reverse=True)


def _written(folder: Path) -> float:
    marker = folder / "DONE"
    return (marker if marker.is_file() else folder / "study.json").stat().st_mtime


def _row(folder: Path) -> dict[str, str]:
    run = RunFolder(folder)
    try:
        job = run.read(StudyFile).job
    except RunError:
        job = "unreadable"
    state = "finished" if run.done else "to be resumed"
    written = datetime.fromtimestamp(_written(folder)).astimezone().isoformat(sep=" ", timespec="seconds")
    return {"run": str(folder), "study": folder.parent.name, "job": job, "state": state, "written": written}


def _check_version(value: object, folder: Path) -> None:
    """Raise RunError if the version of a file's content is neither today's nor 1."""
    version = value.get("schema_version") if isinstance(value, Mapping) else None
    if version in (None, SCHEMA_VERSION):
        return
    newer = isinstance(version, str) and version.isdecimal() and int(version) > int(SCHEMA_VERSION)
    what = f"the run folder has version {version!r} of the files; this medfed reads 1 and {SCHEMA_VERSION}"
    raise RunError(what, where=folder, hint="use a newer medfed" if newer else "run the study again")


def _unreadable(path: Path, why: str) -> RunError:
    return RunError(f"cannot read it: {why}", where=path, hint="run the study again")
