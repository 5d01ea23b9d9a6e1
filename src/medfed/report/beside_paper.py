"""The paper's numbers beside ours: its metrics, its methods, and constant answers on its test sets.

Published numbers are other people's, on other data, from single runs: they stand beside ours, not against them.
"""

from __future__ import annotations

from dataclasses import dataclass

from medfed.report.compared import Comparison
from medfed.report.matrix import Cells
from medfed.report.names import number, paper_task, published

COLUMNS = {"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "f1": "F1", "bleu1": "BLEU-1"}


@dataclass(frozen=True)
class BesideRow:
    """A cell of ours, or a published row with its source."""

    title: str
    style: str
    values: list[str]
    source: str = ""


@dataclass(frozen=True)
class Beside:
    """One task: our cells, then what others printed."""

    title: str
    ours: list[BesideRow]
    theirs: list[BesideRow]


def beside_paper(cells: Cells, task: str) -> Beside | None:
    """Return ours and theirs on ``task``; None where nothing was published."""
    theirs = _theirs(cells.comparison, task)
    if not theirs:
        return None
    ours = []
    for column in cells.drawn():
        rows = [cells.row(column, metric, task) for metric in COLUMNS]
        if any(rows):
            values = [number(row.value) if row is not None else "" for row in rows]
            ours.append(BesideRow(column.title, column.style, values))
    return Beside(cells.title(task), ours, theirs)


def _theirs(comparison: Comparison, task: str) -> list[BesideRow]:
    """The rows of the tables that the comparison names, or of all; constants always."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in published():
        place = row.source.rpartition(", ")[2]
        wanted = not comparison.paper or not row.backbone or place in comparison.paper
        if row.task == paper_task(task) and wanted:
            title = f"{row.method} ({row.backbone})" if row.backbone else row.method
            found.setdefault((title, row.source), {})[row.metric] = row.value
    return [
        BesideRow(title, "published", [number(values[m]) if m in values else "" for m in COLUMNS], source)
        for (title, source), values in found.items()
    ]
