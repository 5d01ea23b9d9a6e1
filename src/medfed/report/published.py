"""Numbers that others printed, on other data, from single runs: context for ours, no target."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from medfed.records.schema import ComparisonFile
from medfed.report.html import Row
from medfed.report.text import number

REPEATED = ("Table 4", "Table 7")
"""Ablations and single-task runs: they stand in comparisons, not in a run's report."""
EVERYWHERE = {"Best of all methods", "Federated-only"}
"""Published rows that stand with any method's."""
METHOD, BACKBONE = "method", "backbone"
"""Axes of a sweep whose values are the paper's names of rows and columns."""


class Published(NamedTuple):
    """A number someone else printed, on other data; ``place`` is the table or figure of the source."""

    task: str
    method: str
    backbone: str
    metric: str
    value: float
    source: str
    place: str


class PaperRow(NamedTuple):
    """A published row: its values by metric."""

    method: str
    backbone: str
    source: str
    values: dict[str, float]

    @property
    def title(self) -> str:
        """The row's name with its source."""
        return ", ".join(text for text in (self.method, self.backbone, self.source) if text)


@cache
def published() -> tuple[Published, ...]:
    """All published numbers the report knows, as fractions."""
    with (Path(__file__).parent / "published.csv").open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    places = [row[5].rpartition(", ")[2] for row in rows]
    numbers = zip(rows, places, strict=True)
    return tuple(Published(r[0], r[1], r[2], r[3], float(r[4]), r[5], place) for r, place in numbers)


def paper_task(task: str) -> str:
    """The paper's code of a task: ``ped-nih`` asks the paper's ``PED`` of other images."""
    return task.partition("-")[0].upper()


def published_rows(task: str, metrics: Sequence[str], algorithm: object) -> list[Row]:
    """Return what was published on a run's task, for a table of ``metrics``; the tip of a row is its source."""
    backbone = "FedProx" if algorithm == "fedprox" else "FedAvg"
    mine = [row for row in published() if row.task == paper_task(task) and row.backbone in ("", backbone)]
    lines = []
    for row in _rows([row for row in mine if row.place not in REPEATED]):
        cells = [number(row.values[name]) if name in row.values else "" for name in metrics]
        lines.append(Row(method_title(row), cells, "published", tip=row.source))
    return lines


def paper_rows(comparison: ComparisonFile, task: str) -> list[PaperRow]:
    """Return the published rows that belong to a comparison's cells on ``task``.

    From the tables that the sweep names, or from all, those are the rows of the cells' methods and backbones. Added
    are the best of all methods, the same group's federated models, and constants on their test sets.
    """
    cells = comparison.cells.values()
    methods = {values.get(METHOD, "FedKIM") for values in cells} | EVERYWHERE
    backbones = {values.get(BACKBONE, "FedAvg") for values in cells}
    mine = [row for row in published() if row.task == paper_task(task)]
    named = [row for row in mine if not comparison.paper or row.place in comparison.paper]
    ours = [row for row in named if not cells or (row.method in methods and row.backbone in backbones)]
    return _rows([row for row in mine if not row.backbone or row in ours])


def method_title(row: PaperRow) -> str:
    """The method, and the algorithm under it."""
    return f"{row.method} ({row.backbone})" if row.backbone else row.method


def _rows(values: Sequence[Published]) -> list[PaperRow]:
    rows: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in values:
        rows.setdefault((row.method, row.backbone, row.source), {})[row.metric] = row.value
    return [PaperRow(*key, by_metric) for key, by_metric in rows.items()]
