"""The paper's numbers beside ours: its metrics, its methods, and constant answers on its test sets.

Published numbers are other people's, on other data, from single runs: they stand beside ours, not against them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from medfed.report.compared import Comparison
from medfed.report.matrix import MEANS, Cells
from medfed.report.names import number, paper_task, published

COLUMNS = {"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "f1": "F1", "bleu1": "BLEU-1"}


@dataclass(frozen=True)
class BesideRow:
    """A cell of ours, or a published row with its source; a value per metric that it has."""

    title: str
    style: str
    values: Mapping[str, float | None]
    source: str = ""

    def printed(self, metrics: Iterable[str]) -> list[str]:
        """The values of ``metrics`` as text; one that was never measured is blank."""
        return [number(self.values[metric]) if metric in self.values else "" for metric in metrics]


@dataclass(frozen=True)
class Beside:
    """One task: our cells, then what others printed."""

    title: str
    rows: list[BesideRow]


def beside_paper(cells: Cells) -> tuple[dict[str, str], list[Beside]]:
    """Return the metrics in use with their titles, and one block per task on which something was published."""
    tasks = dict.fromkeys(row.task for row in cells.comparison.rows if row.part is None and row.task not in MEANS)
    blocks = [
        Beside(cells.title(task), [*_ours(cells, task), *theirs])
        for task in tasks
        if (theirs := _theirs(cells.comparison, task))
    ]
    used = {metric for block in blocks for row in block.rows for metric in row.values}
    return {metric: title for metric, title in COLUMNS.items() if metric in used}, blocks


def _ours(cells: Cells, task: str) -> list[BesideRow]:
    rows = []
    for column in cells.drawn():
        found = {metric: row.value for metric in COLUMNS if (row := cells.row(column, metric, task)) is not None}
        if found:
            rows.append(BesideRow(column.title, column.style, found))
    return rows


def _theirs(comparison: Comparison, task: str) -> list[BesideRow]:
    """The rows of the tables that the comparison names, or of all; constants always."""
    found: dict[tuple[str, str], dict[str, float | None]] = {}
    for row in published():
        place = row.source.rpartition(", ")[2]
        wanted = not comparison.paper or not row.backbone or place in comparison.paper
        if row.task == paper_task(task) and wanted:
            title = f"{row.method} ({row.backbone})" if row.backbone else row.method
            found.setdefault((title, row.source), {})[row.metric] = row.value
    return [BesideRow(title, "published", values, source) for (title, source), values in found.items()]
