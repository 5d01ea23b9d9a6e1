"""How the models learned and whether their probabilities can be trusted: curves by round, reliability diagrams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from medfed.evaluation.metrics import reliability_curve
from medfed.records.schema import Development, Prediction, Step
from medfed.report.charts import Point, Series, colour, line_chart, reliability_chart
from medfed.report.html import Figure, Figures, Legend, Part, Text, when
from medfed.report.run import FEDERATED_LOGS, Run
from medfed.report.text import FEDERATED, INJECTED, model_order, model_style, model_title, natural

MOST_POINTS = 200


def reliability(run: Run) -> list[Part]:
    """Reliability diagrams of the injected and the federated-only model, one per task with class probabilities."""
    text = "Observed frequency against predicted probability in 15 bins. On the dashed line the probabilities hold. A "
    text += "dot's area grows with the number of examples."
    figures: list[Figure] = []
    models: list[str] = []
    tasks = sorted(path.stem for path in run.folder.glob("predictions/*.jsonl"))
    for task in run.ordered(tasks):
        lines = run.lines(Prediction, f"predictions/{task}.jsonl")
        drawn = [(model, _curve(lines, model)) for model in (INJECTED, FEDERATED)]
        curves = [(model_title(model), model_style(model), curve) for model, curve in drawn if curve]
        models += [model for model, curve in drawn if curve]
        if curves:
            figures.append(Figure(run.title(task), reliability_chart(curves, run.title(task))))
    return when(figures, Text(text, "soft"), Figures(figures, _legend(models)))


def curves(run: Run) -> list[Part]:
    """All curves of training: development set, clients, injection."""
    return [*_development(run), *_clients(run), *_injection(run)]


def _development(run: Run) -> list[Part]:
    """The primary metric, or the first that was watched, on the development set by round, one picture per task."""
    development = run.lines(Development) + run.lines(Development, f"{FEDERATED_LOGS}/{Development.NAME}")
    figures, models = [], model_order(row.model for row in development)
    rows = run.all_scores.rows
    titles, primary = {row.metric: row.title for row in rows}, {row.task: row.metric for row in rows if row.primary}
    for task in run.ordered(row.task for row in development):
        mine = [row for row in development if row.task == task]
        watched = dict.fromkeys(name for row in mine for name, value in row.values.items() if value is not None)
        metric = primary[task] if primary.get(task) in watched else next(iter(watched), "")
        by_model = {model: _points([row for row in mine if row.model == model], metric) for model in models}
        series = [Series(model_title(m), model_style(m), points) for m, points in by_model.items() if points]
        if series:
            title = f"{run.title(task)}, {titles.get(metric, metric)}"
            low = min(0.4, *(math.floor(y * 10) / 10 for line in series for _, y in line.points))
            level = 0.5 if metric in ("auroc", "balanced_accuracy") else None
            chart = line_chart(series, "round", f"Development set, {title}", (low, 1.0), level)
            figures.append(Figure(title, chart))
    return when(figures, Text("Development set by round", "h3"), Figures(figures, _legend(models)))


def _clients(run: Run) -> list[Part]:
    """Training loss of every client by round, one picture per task."""
    losses: dict[str, dict[str, list[Point]]] = {}
    for line in run.rounds:
        for client in line.clients:
            for task, loss in client.losses.items():
                if loss is not None:
                    losses.setdefault(task, {}).setdefault(client.client, []).append((float(line.round), loss))
    names = sorted({name for by_client in losses.values() for name in by_client}, key=natural)
    styles = {name: colour(index, len(names)) for index, name in enumerate(names)}
    figures = []
    for task in run.ordered(losses):
        series = [Series(name, styles[name], losses[task][name], dots=False) for name in names if name in losses[task]]
        chart = line_chart(series, "round", f"Client training loss, {run.title(task)}")
        figures.append(Figure(run.title(task), chart))
    legend = [Legend(name, style) for name, style in styles.items()]
    legend = [Legend("one line per client", "many")] if "many" in styles.values() else legend
    return when(figures, Text("Training loss of the clients by round", "h3"), Figures(figures, legend))


def _injection(run: Run) -> list[Part]:
    """Loss of the server's injection steps, with the mean of each round."""
    steps = [(step.round, step.loss) for step in run.lines(Step) if step.loss is not None]
    points = [(at, (float(place), loss)) for place, (at, loss) in enumerate(steps, start=1)]
    means = [_mean([point for _, point in part]) for _, part in groupby(points, key=lambda pair: pair[0])]
    if not points:
        return []
    every = thinned([point for _, point in points])
    series = [Series("step", "faint", every, dots=False), Series("mean of the round", "fedkim", means)]
    figure = Figure("Injection loss", line_chart(series, "server step", "Injection loss"))
    legend = [Legend(line.name, line.style) for line in series]
    return [Text("Injection loss on the server", "h3"), Figures([figure], legend, "three", captions=False)]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Average neighbours until at most ``most`` points are left."""
    cuts = [round(len(points) * place / most) for place in range(most + 1)]
    return list(points) if len(points) <= most else [_mean(points[a:b]) for a, b in pairwise(cuts)]


def _points(rows: Sequence[Development], metric: str) -> list[Point]:
    return [(float(row.round), value) for row in rows if (value := row.values.get(metric)) is not None]


def _legend(models: Sequence[str]) -> list[Legend]:
    return [Legend(model_title(model), model_style(model)) for model in model_order(models)]


def _mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _curve(lines: Sequence[Prediction], model: str) -> list[tuple[float, float, int]]:
    """Return the reliability curve of a closed task's model; nothing for other kinds of answers."""
    held = [(line.truth, line.responses[model]) for line in lines if line.responses.get(model) is not None]
    if not held or not all(isinstance(truth, int) and _are_probabilities(response) for truth, response in held):
        return []
    targets, scores = np.array([truth for truth, _ in held]), np.array([response for _, response in held], float)
    return [(point.confidence, point.observed, point.num_examples) for point in reliability_curve(targets, scores)]


def _are_probabilities(response: Any) -> bool:
    return isinstance(response, list) and all(isinstance(p, int | float) and 0 <= p <= 1 for p in response)
