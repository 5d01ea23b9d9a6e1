"""Read a run folder for the report. A file that is absent or broken becomes a note in the report, never a crash."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from medfed.core.errors import RunError
from medfed.report.records import (
    CardFile,
    Development,
    Partition,
    Prediction,
    Provenance,
    Record,
    Round,
    Routing,
    ScoreFile,
    SiteFile,
    Step,
    Timing,
)

R = TypeVar("R", bound=Record)
BASELINE = "federated-only"
"""Folder, inside the run, of the federation without injection."""
STUDY = TypeAdapter(dict[str, object])


@dataclass(frozen=True)
class Note:
    """A file that is absent, or what is wrong with it."""

    file: str
    what: str


@dataclass(frozen=True)
class RunFiles:
    """All the report knows of a run; absent files are empty, and ``notes`` says so.

    ``scores`` and ``predictions`` are those of closed tasks, ``open_scores`` those of open ones.
    ``development`` holds the injected and the federated-only arm, ``baseline_rounds`` the latter's rounds.
    """

    folder: Path
    study: dict[str, object]
    provenance: Provenance
    partition: Partition
    rounds: list[Round]
    baseline_rounds: list[Round]
    timings: list[Timing]
    development: list[Development]
    steps: list[Step]
    routing: list[Routing]
    predictions: dict[str, list[Prediction]]
    scores: ScoreFile
    open_scores: ScoreFile
    cards: CardFile
    sites: SiteFile
    notes: list[Note]

    @property
    def name(self) -> str:
        """The study's name, else the folder's."""
        return str(self.study.get("name", self.folder.name))

    @property
    def synthetic(self) -> list[str]:
        """Titles of the datasets that are synthetic twins."""
        return [facts.title or name for name, facts in self.provenance.data.items() if facts.synthetic]


@dataclass(frozen=True)
class RunFacts:
    """What a comparison needs of a run: its settings and where its data come from."""

    folder: Path
    study: dict[str, object]
    provenance: Provenance


def read_facts(folder: Path) -> RunFacts:
    """Read settings and provenance of the run in ``folder``; what is absent or broken stays empty.

    Raises:
        RunError: the folder does not exist.
    """
    _require(folder)
    reader = _Reader(folder)
    return RunFacts(folder.resolve(), reader.study(), reader.one("provenance.json", Provenance))


def read_run(folder: Path) -> RunFiles:
    """Read the files of the run in ``folder``.

    Raises:
        RunError: the folder does not exist.
    """
    _require(folder)
    reader = _Reader(folder)
    predictions = {
        path.stem: reader.lines(f"predictions/{path.name}", Prediction) for path in reader.prediction_files()
    }
    closed = {task: lines for task, lines in predictions.items() if all(line.reference is None for line in lines)}
    scores = reader.one("scores.json", ScoreFile)
    return RunFiles(
        folder=folder.resolve(),
        study=reader.study(),
        provenance=reader.one("provenance.json", Provenance),
        partition=reader.one("partition.json", Partition),
        rounds=reader.lines("rounds.jsonl", Round),
        baseline_rounds=reader.lines(f"{BASELINE}/rounds.jsonl", Round, optional=True),
        timings=reader.lines("timings.jsonl", Timing),
        development=reader.lines("development.jsonl", Development)
        + reader.lines(f"{BASELINE}/development.jsonl", Development, optional=True),
        steps=reader.lines("injection/steps.jsonl", Step),
        routing=reader.lines("injection/routing.jsonl", Routing),
        predictions=closed,
        scores=scores.about(open_questions=False),
        open_scores=scores.about(open_questions=True),
        cards=reader.one("cards.json", CardFile),
        sites=reader.one("sites.json", SiteFile, optional=True),
        notes=reader.notes,
    )


def read_sites(folder: Path) -> SiteFile:
    """Read what the sites of the run in ``folder`` scored; nothing where it has none."""
    return _Reader(folder).one("sites.json", SiteFile, optional=True)


def _require(folder: Path) -> None:
    if not folder.is_dir():
        raise RunError("no such run folder", where=folder, hint="pass runs/<study>/<hash>-seed<n>")


class _Reader:
    """Reads files and gathers notes on those it cannot read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[Note] = []

    def study(self) -> dict[str, object]:
        text = self._text("study.json")
        try:
            return STUDY.validate_python(json.loads(text)) if text is not None else {}
        except (ValueError, ValidationError) as error:
            self.notes.append(Note("study.json", _first(error)))
            return {}

    def one(self, name: str, kind: type[R], *, optional: bool = False) -> R:
        if optional and not (self.folder / name).exists():
            return kind()
        text = self._text(name)
        try:
            return kind.model_validate(json.loads(text)) if text is not None else kind()
        except (ValueError, ValidationError) as error:
            self.notes.append(Note(name, _first(error)))
            return kind()

    def lines(self, name: str, kind: type[R], *, optional: bool = False) -> list[R]:
        if optional and not (self.folder / name).exists():
            return []
        text = self._text(name)
        records: list[R] = []
        for number, line in enumerate((text or "").splitlines(), start=1):
            try:
                records.append(kind.model_validate(json.loads(line)))
            except (ValueError, ValidationError) as error:
                self.notes.append(Note(f"{name}:{number}", _first(error)))
        return records

    def prediction_files(self) -> list[Path]:
        files = sorted(self.folder.glob("predictions/*.jsonl"))
        if not files:
            self.notes.append(Note("predictions/", "absent"))
        return files

    def _text(self, name: str) -> str | None:
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            self.notes.append(Note(name, "absent"))
        except (OSError, UnicodeDecodeError) as error:
            self.notes.append(Note(name, str(error)))
        return None


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    return f"not JSON: {error}"
