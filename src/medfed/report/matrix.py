"""The tables of a comparison: tasks downwards, cells to the right, the mean over seeds with its interval in each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medfed.report.bars import Bar
from medfed.report.compared import ComparedDifference, ComparedRow, Comparison
from medfed.report.names import MISSING, is_constant, model_order, model_title, number

MODEL = "fedkim"
CELL_STYLES = ("c0", "c2", "c3", "c4", "c5", "c6")
"""Colours of the cells; the orange between the first two is the federated-only model's."""
MEANS = {"mean-trained": "Mean of the trained tasks", "mean-unseen": "Mean of the unseen tasks"}
METRICS = {
    "auroc": "AUROC",
    "balanced_accuracy": "Balanced accuracy",
    "token_f1": "Token F1",
    "bleu1": "BLEU-1",
    "exact_match": "Exact match",
}
"""The metrics a comparison tabulates, where it has them."""
SECTIONS = {"trained": "Trained tasks", "unseen": "Unseen tasks"}


@dataclass(frozen=True)
class Column:
    """A model of one or more cells; cells that share a baseline share its column."""

    labels: tuple[str, ...]
    model: str
    title: str
    style: str


@dataclass(frozen=True)
class Entry:
    """A cell of the table as printed."""

    value: str
    interval: str
    flagged: bool = False
    marks: str = ""


@dataclass(frozen=True)
class Line:
    """One task (or mean over tasks)."""

    title: str
    size: str
    mean: bool
    entries: list[Entry]


@dataclass(frozen=True)
class Matrix:
    """One metric's table: sections of lines."""

    title: str
    sections: list[tuple[str, list[Line]]]


class Cells:
    """The rows of a comparison, found by label, model, task, metric and part."""

    def __init__(self, comparison: Comparison, titles: dict[str, str]) -> None:
        self.comparison, self._titles = comparison, titles
        self._rows = {(r.label, r.model, r.task, r.metric, r.part): r for r in comparison.rows}
        self.columns = self._columns()
        self._marks: dict[tuple[str, str, str, str, str | None], str] = {}
        for difference in comparison.differences:
            for label, model, mark in _marked(difference, comparison.labels):
                key = (label, model, difference.task, difference.metric, difference.part)
                self._marks[key] = self._marks.get(key, "") + mark

    def matrices(self) -> list[Matrix]:
        """One table per metric that the comparison has."""
        return [
            Matrix(title, sections)
            for metric, title in METRICS.items()
            if (sections := [(SECTIONS[role], lines) for role in SECTIONS if (lines := self._lines(metric, role))])
        ]

    def title(self, task: str, part: str | None = None) -> str:
        """What a table prints for a task, or a part of it."""
        title = MEANS.get(task) or self._titles.get(task) or task.upper()
        return f"{title}, {part}" if part else title

    def tasks(self, metric: str, role: str, *, means: bool = True) -> list[tuple[str, str | None]]:
        """Tasks and parts that have ``metric``, the mean first."""
        found = dict.fromkeys((r.task, r.part) for r in self.comparison.rows if (r.metric, r.role) == (metric, role))
        ordered = sorted(found, key=lambda key: key[0] not in MEANS)
        return [key for key in ordered if means or key[0] not in MEANS]

    def drawn(self) -> list[Column]:
        """The columns that pictures show: every cell's injected LLM, and the federated-only models."""
        return [column for column in self.columns if column.model in (MODEL, "federated")]

    def row(self, column: Column, metric: str, task: str, part: str | None = None) -> ComparedRow | None:
        """The row behind one entry."""
        return self._rows.get((column.labels[0], column.model, task, metric, part))

    def constant(self, metric: str, task: str, part: str | None = None) -> float | None:
        """The highest value a constant answer reaches."""
        values = [r.value for r in self.comparison.rows if is_constant(r.model) and _at(r) == (metric, task, part)]
        return max((value for value in values if value is not None), default=None)

    def bar(self, column: Column, metric: str, task: str, part: str | None = None) -> Bar | None:
        """One entry as a bar."""
        row = self.row(column, metric, task, part)
        if row is None:
            return None
        seeds = [value for value in row.per_seed if value is not None]
        return Bar(column.title, column.style, row.value, row.ci_low, row.ci_high, seeds)

    def _columns(self) -> list[Column]:
        rows = [row for row in self.comparison.rows if not is_constant(row.model)]
        labels = self.comparison.labels
        shared: dict[tuple[str, object], list[str]] = {}
        for model in model_order([row.model for row in rows]):
            for label in labels:
                own = [row for row in rows if (row.label, row.model) == (label, model)]
                values = tuple(sorted((str(_at(row)), str(row.per_seed), row.value or 0.0) for row in own))
                if own:
                    shared.setdefault((model, label if model == MODEL else values), []).append(label)
        return [
            Column(tuple(who), model, _column_title(model, who, labels), self._style(model, who))
            for (model, _), who in shared.items()
        ]

    def _style(self, model: str, labels: Sequence[str]) -> str:
        if model != MODEL:
            return model if model == "federated" else "other"
        index = self.comparison.labels.index(labels[0])
        return CELL_STYLES[index] if index < len(CELL_STYLES) else "many"

    def _lines(self, metric: str, role: str) -> list[Line]:
        return [
            Line(
                self.title(task, part),
                _size(r for r in self.comparison.rows if _at(r) == (metric, task, part)),
                task in MEANS,
                [
                    *(self._entry(column, metric, task, part) for column in self.columns),
                    Entry(number(self.constant(metric, task, part)), ""),
                ],
            )
            for task, part in self.tasks(metric, role)
        ]

    def _entry(self, column: Column, metric: str, task: str, part: str | None) -> Entry:
        row = self.row(column, metric, task, part)
        if row is None:
            return Entry(MISSING, "")
        has_bounds = row.ci_low is not None and row.ci_high is not None
        bounds = f"[{number(row.ci_low, 2)}, {number(row.ci_high, 2)}]" if has_bounds else ""
        marks = self._marks.get((row.label, row.model, task, metric, part), "")
        return Entry(number(row.value), bounds, row.single_class, marks)


def _marked(difference: ComparedDifference, labels: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return (label, model, mark) of a significant difference: ``*`` from its federation, ``†`` from the first cell."""
    if not difference.significant:
        return []
    pair = [(difference.label, difference.model), (difference.baseline_label, difference.baseline_model)]
    if pair[1] == (difference.label, "federated"):
        return [(*pair[0], "*")]
    first = (labels[0], MODEL)
    return [(*other, "†") for other in pair if first in pair and other != first and other[1] == MODEL]


def _at(row: ComparedRow) -> tuple[str, str, str | None]:
    return row.metric, row.task, row.part


def _size(rows: Iterable[ComparedRow]) -> str:
    sizes = sorted({row.n for row in rows if row.n})
    return f"n = {sizes[0]}" + (f" to {sizes[-1]}" if len(sizes) > 1 else "") if sizes else ""


def _column_title(model: str, who: Sequence[str], labels: Sequence[str]) -> str:
    """A cell's label for its injected LLM; another model's name, with the cells it belongs to unless that is all."""
    if model == MODEL:
        return who[0]
    if len(who) == len(labels):
        return model_title(model)
    return f"{model_title(model)} ({', '.join(who) if len(who) < 3 else f'{len(who)} cells'})"
