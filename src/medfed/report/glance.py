"""The run at a glance: radars over the unseen tasks, with the best constant answer drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from medfed.report.figures import Legend
from medfed.report.names import is_constant, model_order, model_style, model_title, ordered, task_title
from medfed.report.radar import LEAST_AXES, Axis, Polygon, radar_chart
from medfed.report.read import RunFiles
from medfed.report.records import ScoreRow

RANGES = {
    "auroc": ("AUROC", 0.25, 1.0),
    "accuracy": ("Accuracy", 0.0, 1.0),
    "token_f1": ("Token F1", 0.0, 1.0),
}
"""Metric → title and declared range of its axes. Chance is 0.5 of AUROC; the paper's Figure 2 shows accuracy."""
CONSTANT = "Best constant answer"


@dataclass(frozen=True)
class Radar:
    """A radar chart, what it shows and who is in it."""

    title: str
    text: str
    picture: Markup
    legend: list[Legend]


def radars(run: RunFiles) -> list[Radar]:
    """One radar per metric over the unseen tasks that have it; none where there are too few."""
    rows = [row for row in run.scores.rows if row.role == "unseen"]
    rows += [row for row in run.open_scores.rows if row.role == "unseen" and row.part == "all"]
    names = ordered(run, [row.task for row in rows])
    models = [model for model in model_order([row.model for row in rows]) if not is_constant(model)]
    found = []
    for metric in RANGES:
        values = {(row.model, row.task): row for row in rows if row.metric == metric}
        tasks = [task for task in names if any(at == task for _, at in values)]
        polygons = [
            Polygon(model_title(m), model_style(m), [_value(values.get((m, task))) for task in tasks])
            for m in models
            if any((m, task) in values for task in tasks)
        ]
        constant = Polygon(CONSTANT, "constant", [best_constant(values, task) for task in tasks])
        titles = [task_title(run, task) for task in tasks]
        if len(tasks) >= LEAST_AXES:
            found.append(radar_of(metric, titles, [constant, *polygons]))
    return found


def radar_of(metric: str, tasks: Sequence[str], polygons: Sequence[Polygon]) -> Radar:
    """Draw ``polygons`` over one axis per task on the metric's declared range; later ones lie on top."""
    title, low, high = RANGES[metric]
    picture = radar_chart([Axis(task, low, high) for task in tasks], polygons, f"{title} on the unseen tasks")
    legend = [Legend(polygon.name, polygon.style) for polygon in [*polygons[1:], polygons[0]]]
    return Radar(title, f"Every axis runs from {low:g} in the centre to {high:g}.", picture, legend)


def best_constant(rows: dict[tuple[str, str], ScoreRow], task: str) -> float | None:
    """The highest value any constant answer reaches on ``task``."""
    values = [row.value for (model, at), row in rows.items() if at == task and is_constant(model)]
    return max((value for value in values if value is not None), default=None)


def _value(row: ScoreRow | None) -> float | None:
    return row.value if row is not None else None
