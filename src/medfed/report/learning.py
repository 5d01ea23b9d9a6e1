"""How the models learned and whether their probabilities can be trusted: curves by round, reliability diagrams."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from medfed.evaluation.metrics import ReliabilityPoint, reliability_curve
from medfed.report.figures import Figure, Legend, Point, Series, colour, line_chart, reliability_chart, thinned
from medfed.report.names import model_order, model_style, model_title, natural, ordered, task_title
from medfed.report.read import RunFiles
from medfed.report.records import Prediction

CALIBRATED = ("fedkim", "federated")
"""Models whose reliability is drawn; more curves in one picture would hide each other."""


def reliability(run: RunFiles) -> tuple[list[Figure], list[Legend]]:
    """Reliability diagrams of the injected LLM and the federated-only model, one per task with predictions."""
    figures, seen = [], []
    for task in ordered(run, run.predictions):
        predictions = run.predictions[task]
        models = model_order([model for p in predictions[:1] for model in p.scores if model in CALIBRATED])
        curves = [(m, curve) for m in models if (curve := _curve(predictions, m))]
        if curves:
            chart = reliability_chart([(model_title(m), model_style(m), c) for m, c in curves], task_title(run, task))
            figures.append(Figure(task_title(run, task), chart))
            seen += [model for model, _ in curves]
    return figures, [Legend(model_title(model), model_style(model)) for model in model_order(seen)]


def development_curves(run: RunFiles) -> tuple[list[Figure], list[Legend]]:
    """AUROC on the development set by round, one picture per task."""
    models = model_order([row.model for row in run.development if row.auroc is not None])
    figures = []
    for task in ordered(run, [row.task for row in run.development]):
        rows = [row for row in run.development if row.task == task and row.auroc is not None]
        series = [
            Series(model_title(model), model_style(model), points)
            for model in models
            if (points := [(float(r.round), r.auroc) for r in rows if r.model == model and r.auroc is not None])
        ]
        if series:
            low = min(0.4, *(math.floor(y * 10) / 10 for line in series for _, y in line.points))
            chart = line_chart(series, "round", f"Development AUROC, {task_title(run, task)}", (low, 1.0), 0.5)
            figures.append(Figure(task_title(run, task), chart))
    return figures, [Legend(model_title(model), model_style(model)) for model in models]


def client_curves(run: RunFiles) -> tuple[list[Figure], list[Legend]]:
    """Training loss of every client by round, one picture per task."""
    clients = sorted({client.client for line in run.rounds for client in line.clients}, key=natural)
    tasks = [task for line in run.rounds for client in line.clients for task in client.losses]
    figures = []
    for task in ordered(run, tasks):
        series = [
            Series(name, colour(index, len(clients)), points, dots=False)
            for index, name in enumerate(clients)
            if (points := list(_losses(run, name, task)))
        ]
        if series:
            chart = line_chart(series, "round", f"Client training loss, {task_title(run, task)}")
            figures.append(Figure(task_title(run, task), chart))
    legend = [Legend(name, colour(index, len(clients))) for index, name in enumerate(clients)]
    return figures, legend if len({entry.style for entry in legend}) > 1 else [Legend("one line per client", "many")]


def injection_curve(run: RunFiles) -> Figure | None:
    """Loss of the server's injection steps, with the mean of each round."""
    steps = [(step.round, step.loss) for step in run.steps if step.loss is not None]
    if not steps:
        return None
    points = [(float(place), loss) for place, (_, loss) in enumerate(steps, start=1)]
    rounds = dict.fromkeys(number for number, _ in steps)
    means = [_mean([p for p, (r, _) in zip(points, steps, strict=True) if r == number]) for number in rounds]
    series = [Series("step", "faint", thinned(points), dots=False), Series("mean of the round", "fedkim", means)]
    return Figure("Injection loss", line_chart(series, "server step", "Injection loss"))


def _losses(run: RunFiles, client: str, task: str) -> Iterator[Point]:
    for line in run.rounds:
        for result in line.clients:
            loss = result.losses.get(task)
            if result.client == client and loss is not None:
                yield float(line.round), loss


def _mean(points: list[Point]) -> Point:
    x, y = np.mean(points, axis=0)
    return float(x), float(y)


def _curve(predictions: list[Prediction], model: str) -> list[ReliabilityPoint]:
    rows = [(p.target, p.scores[model]) for p in predictions if model in p.scores and None not in p.scores[model]]
    if not rows:
        return []
    targets, scores = np.array([target for target, _ in rows]), np.array([score for _, score in rows], float)
    if scores.min() < 0 or scores.max() > 1:
        return []
    return reliability_curve(targets, scores)
