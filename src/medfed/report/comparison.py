"""The report of several runs: cells of a study side by side, over seeds, with intervals, stars and what differs.

Its numbers come from ``medfed.evaluation.compare``; this module prints them and computes none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from medfed.core.errors import RunError
from medfed.core.files import write_whole
from medfed.report import differences
from medfed.report.bars import bar_chart
from medfed.report.beside_paper import beside_paper
from medfed.report.compared import Comparison
from medfed.report.figures import Figure, Legend
from medfed.report.glance import CONSTANT, RANGES, Radar, radar_of
from medfed.report.html import flattened
from medfed.report.matrix import METRICS, MODEL, Cells, Column
from medfed.report.names import MISSING, natural
from medfed.report.page import render
from medfed.report.radar import LEAST_AXES, Polygon
from medfed.report.read import RunFacts, read_facts

MIN_SEEDS = 5
"""Below it nothing is called significant."""
NO_SETTINGS = {"seed", "name", "description"}
BAR_LIMITS = {"auroc": (0.3, 1.0), "balanced_accuracy": (0.3, 1.0)}
"""Declared axes of the bars; metrics that are not here run from 0 to 1."""


@dataclass(frozen=True)
class Cell:
    """The runs of one configuration, and the settings in which it differs from the others."""

    label: str
    seeds: str
    commits: str
    settings: list[str]


def write_comparison(comparison: Mapping[str, object], folders: Sequence[Path], out: Path) -> None:
    """Build the report of ``comparison`` and write it to ``out``, whole or not at all."""
    write_whole(out, build_comparison(comparison, folders))


def build_comparison(comparison: Mapping[str, object], folders: Sequence[Path]) -> str:
    """Return the report of several runs as HTML.

    Args:
        comparison: what ``compare_runs`` returned for ``folders``.
        folders: the run folders; titles, data and settings are read from them.

    Raises:
        RunError: a folder does not exist, or ``comparison`` is not what ``compare_runs`` returns.
    """
    try:
        found = Comparison.model_validate(comparison)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise RunError(f"{where}: {problem['msg']}", where="comparison", hint="make it with compare_runs") from error
    runs = [read_facts(folder) for folder in folders]
    titles = {name: title for run in runs for name, title in run.provenance.titles.items()}
    cells = Cells(found, titles)
    return render("comparison.html.jinja", _content(found, runs, cells))


def default_labels(folders: Sequence[Path]) -> list[str]:
    """Label runs by study and configuration hash, so that the seeds of one configuration share a label."""
    names = [str(read_facts(folder).study.get("name", folder.parent.name)) for folder in folders]
    hashes = [folder.resolve().name.partition("-seed")[0] for folder in folders]
    return [f"{name} {digest}" for name, digest in zip(names, hashes, strict=True)]


def _content(comparison: Comparison, runs: Sequence[RunFacts], cells: Cells) -> dict[str, object]:
    against = differences.printed(comparison, cells)
    settings, configurations = _cells(comparison, runs)
    columns, beside = beside_paper(cells)
    return {
        "name": comparison.name or "Comparison",
        "description": comparison.description,
        "sentences": differences.sentences(comparison),
        "synthetic": _synthetic(runs),
        "few": min((len(seeds) for seeds in comparison.seeds.values()), default=1) < MIN_SEEDS,
        "min_seeds": MIN_SEEDS,
        "settings": settings,
        "cells": configurations,
        "columns": cells.columns,
        "matrices": cells.matrices(),
        "radars": _radars(cells),
        "bars": [(METRICS[metric], _bars(cells, metric)) for metric in METRICS if cells.tasks(metric, "unseen")],
        "beside_columns": columns,
        "legend_entries": [Legend(column.title, column.style) for column in cells.drawn()],
        "means": [row for row in against if row.mean],
        "others": [row for row in against if not row.mean],
        "beside": beside,
    }


def _radars(cells: Cells) -> list[Radar]:
    found = []
    for metric in RANGES:
        tasks = cells.tasks(metric, "unseen", means=False)
        columns = [column for column in cells.drawn() if column.model == MODEL]
        polygons = [Polygon(c.title, c.style, [_value(cells, c, metric, *task) for task in tasks]) for c in columns]
        constant = Polygon(CONSTANT, "constant", [cells.constant(metric, *task) for task in tasks])
        if len(tasks) >= LEAST_AXES:
            found.append(radar_of(metric, [cells.title(*task) for task in tasks], [constant, *polygons]))
    return found


def _value(cells: Cells, column: Column, metric: str, task: str, part: str | None) -> float | None:
    row = cells.row(column, metric, task, part)
    return row.value if row is not None else None


def _bars(cells: Cells, metric: str) -> list[Figure]:
    figures = []
    for task, part in [*cells.tasks(metric, "trained"), *cells.tasks(metric, "unseen")]:
        bars = [bar for column in cells.drawn() if (bar := cells.bar(column, metric, task, part)) is not None]
        level = cells.constant(metric, task, part)
        title = cells.title(task, part)
        limits = BAR_LIMITS.get(metric, (0.0, 1.0))
        figures.append(Figure(title, bar_chart(bars, level or 0.0, limits, f"{METRICS[metric]}, {title}")))
    return figures


def _synthetic(runs: Sequence[RunFacts]) -> str:
    data = {name: facts for run in runs for name, facts in run.provenance.data.items()}
    made = [facts.title or name for name, facts in data.items() if facts.synthetic]
    return f"all {len(data)} datasets" if len(made) == len(data) > 1 else ", ".join(made)


def _cells(comparison: Comparison, runs: Sequence[RunFacts]) -> tuple[list[str], list[Cell]]:
    """Return the settings that differ between configurations, and the configurations, in the order of the labels."""
    groups: dict[str, list[RunFacts]] = {}
    for run in runs:
        groups.setdefault(f"{run.folder.parent.name}/{run.folder.name.partition('-seed')[0]}", []).append(run)
    labels = comparison.labels if len(comparison.labels) == len(groups) else tuple(groups)
    trees = [dict(flattened(group[0].study)) for group in groups.values()]
    keys = sorted({key for tree in trees for key in tree} - NO_SETTINGS, key=natural)
    keys = [key for key in keys if len({tree.get(key) for tree in trees}) > 1]
    return keys, [
        Cell(label, _seeds(group), _joined(map(_commit, group)), [tree.get(key, MISSING) for key in keys])
        for label, group, tree in zip(labels, groups.values(), trees, strict=True)
    ]


def _seeds(group: Sequence[RunFacts]) -> str:
    return _joined(run.study.get("seed", "not recorded") for run in group)


def _joined(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _commit(run: RunFacts) -> str:
    facts = run.provenance
    return f"{facts.commit[:10]}{' and uncommitted changes' if facts.dirty else ''}" if facts.commit else "not recorded"
