"""A run folder as the report reads it, file by file and on demand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from medfed.core.errors import RunError
from medfed.records.folder import RunFolder, first_problem, line_of
from medfed.records.schema import File, Line, PartitionFile, ProvenanceFile, ScoreFile, StudyFile
from medfed.report.models import FEDERATED, INJECTED, injected_title, model_title

F = TypeVar("F", bound=File)
L = TypeVar("L", bound=Line)
DEPLOYED = "Deployed (this algorithm)"
"""The title of the federation's model in a benchmark."""
FEDERATED_LOGS = "federated-only"
"""Folder, inside the run, with the logs of the federation without injection."""
EXPECTED = ("study.json", "provenance.json", "partition.json", "scores.json", "rounds.jsonl")
"""Files of every run: their absence is a note, that of others is none."""


class Run:
    """A run: what cannot be read is empty, and ``notes`` says so as (file, problem).

    Raises RunError if the folder does not exist, or another version of medfed wrote it.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise RunError("no such run folder", where=folder, hint="pass runs/<study>/<hash>-seed<n>")
        self.folder = folder.resolve()
        self.notes: list[tuple[str, str]] = []
        self._files, self._held = RunFolder(folder), dict[type[File] | str, File | list[Any]]()
        self.done = self._files.done
        self.study = self.file(StudyFile)
        self.name = self.study.name or self.folder.name

    @property
    def provenance(self) -> ProvenanceFile:
        """Code, machine and data."""
        return self.file(ProvenanceFile)

    @property
    def partition(self) -> PartitionFile:
        """Holdings of clients and server."""
        return self.file(PartitionFile)

    @cached_property
    def all_scores(self) -> ScoreFile:
        """Every row of ``scores.json`` about patients."""
        return self.file(ScoreFile).of(knowledge=False)

    @cached_property
    def knowledge(self) -> ScoreFile:
        """Rows of the LLM's answers without patients."""
        return self.file(ScoreFile).of(knowledge=True)

    @cached_property
    def scores(self) -> ScoreFile:
        """Rows of tasks without parts."""
        return self.all_scores.about(open_questions=False)

    @cached_property
    def open_scores(self) -> ScoreFile:
        """Rows of tasks whose questions are answered in words."""
        return self.all_scores.about(open_questions=True)

    @property
    def synthetic(self) -> list[str]:
        """Titles of the datasets that are synthetic twins."""
        return [facts.title or name for name, facts in self.provenance.data.items() if facts.synthetic]

    def title(self, task: str) -> str:
        """A task's title as the run recorded it, else its name."""
        return self.provenance.titles.get(task) or task.upper()

    def model_title(self, model: str) -> str:
        """A model's title: FedKIM by its name only with a recipe of the paper, and the study's own algorithm."""
        if model == INJECTED:
            injection = self.study.settings.get("injection")
            settings = injection if isinstance(injection, dict) else {}
            return injected_title(settings.get("recipe"), settings.get("num_experts"))
        return DEPLOYED if model == FEDERATED and self.study.job == "benchmark" else model_title(model)

    def ordered(self, tasks: Iterable[str]) -> list[str]:
        """Sort tasks as the study lists them, trained first; others follow as they come."""
        given, known = list(dict.fromkeys(tasks)), list(dict.fromkeys([*self.study.train, *self.study.unseen]))
        return [name for name in known if name in given] + [name for name in given if name not in known]

    def setting(self, path: str) -> object:
        """Return a setting by its dotted name; None where the study has none."""
        return dict(self.settings).get(path)

    @cached_property
    def settings(self) -> list[tuple[str, str]]:
        """All settings under dotted names, values as text."""
        return list(_flattened(self.study.settings)) if self._files.exists(StudyFile.NAME) else []

    def file(self, kind: type[F]) -> F:
        """Return a file; one that cannot be read is empty and a note."""
        if kind not in self._held:
            self._held[kind] = self._read(kind)
        return cast("F", self._held[kind])

    def lines(self, kind: type[L], name: str | None = None) -> list[L]:
        """Return the lines of a file that can be read; each other one is a note."""
        name = name or kind.NAME
        if name not in self._held:
            self._held[name] = list(self._records(kind, name))
        return cast("list[L]", self._held[name])

    def _read(self, kind: type[F]) -> F:
        if not self._files.exists(kind.NAME):
            self.notes += [(kind.NAME, "absent")] * (kind.NAME in EXPECTED)
            return kind()
        try:
            return self._files.read(kind)
        except RunError as error:
            if error.where == self._files.root:  # the folder's version, and not this file, is the problem
                raise
            self.notes.append((kind.NAME, error.what))
            return kind()

    def _records(self, kind: type[L], name: str) -> Iterator[L]:
        text = ""
        try:
            text = (self.folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            self.notes += [(name, "absent")] * (name in EXPECTED)
        except (OSError, UnicodeDecodeError) as error:
            self.notes.append((name, str(error)))
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                yield line_of(kind, line)
            except (ValueError, KeyError) as error:
                self.notes.append((f"{name}:{number}", first_problem(error)))


def _flattened(value: object, path: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flattened(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
