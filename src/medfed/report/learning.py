"""How the models learned, whether their probabilities can be trusted, and whether the router routes.

A router whose weights are the same for every task makes the mixture of experts one plain LoRA; the report says so. One
task that differs from eleven equal ones moves any mean over pairs of tasks. So the statement counts: the number of
mixtures that are pairwise different, and of tasks that share the most common one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np

from medfed.evaluation.metrics import ReliabilityPoint, reliability_curve
from medfed.records.schema import ComparisonFile, Development, Prediction, Round, Routing, Step
from medfed.report.charts import Point, Series, colour, line_chart, reliability_chart, strip
from medfed.report.html import Cell, Figure, Figures, Group, Legend, Part, Row, Table, Text, columns, when
from medfed.report.models import FEDERATED, INJECTED, model_order, model_style
from medfed.report.run import FEDERATED_LOGS, Run
from medfed.report.text import MISSING, markdown_table, natural, number, plural

MOST_POINTS = 200
SAME_BELOW = 0.05
"""Total-variation distance below which two mixtures count as one: 5 % of the weight lies on other experts."""


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
        curves = [(run.model_title(model), model_style(model), curve) for model, curve in drawn if curve]
        models += [model for model, curve in drawn if curve]
        if curves:
            figures.append(Figure(run.title(task), reliability_chart(curves, run.title(task))))
    return when(figures, Text(text, "soft"), Figures(figures, _legend(run, models)))


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
        known = [(row.model, (float(row.round), y)) for row in mine if (y := row.values.get(metric)) is not None]
        by_model = {model: [point for name, point in known if name == model] for model in models}
        series = [Series(run.model_title(m), model_style(m), points) for m, points in by_model.items() if points]
        if series:
            title = f"{run.title(task)}, {titles.get(metric, metric)}"
            low = min(0.4, *(math.floor(y * 10) / 10 for line in series for _, y in line.points))
            level = 0.5 if metric in ("auroc", "balanced_accuracy") else None
            chart = line_chart(series, "round", f"Development set, {title}", (low, 1.0), level)
            figures.append(Figure(title, chart))
    return when(figures, Text("Development set by round", "h3"), Figures(figures, _legend(run, models)))


def _clients(run: Run) -> list[Part]:
    """Training loss of every client by round, one picture per task."""
    losses: dict[str, dict[str, list[Point]]] = {}
    for line in run.lines(Round):
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


def _legend(run: Run, models: Sequence[str]) -> list[Legend]:
    return [Legend(run.model_title(model), model_style(model)) for model in model_order(models)]


def _mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _curve(lines: Sequence[Prediction], model: str) -> list[ReliabilityPoint]:
    """Return the reliability curve of a closed task's model; nothing for other kinds of answers."""
    held = [(line.truth, line.responses[model]) for line in lines if line.responses.get(model) is not None]
    if not held or not all(isinstance(truth, int) and isinstance(response, list) for truth, response in held):
        return []
    if not all(isinstance(p, int | float) and 0 <= p <= 1 for _, response in held for p in response):
        return []
    targets, scores = np.array([truth for truth, _ in held]), np.array([response for _, response in held], float)
    return list(reliability_curve(targets, scores))


class Mixtures(NamedTuple):
    """How tasks share mixtures of experts.

    ``distinct`` tasks have mixtures pairwise at least :data:`SAME_BELOW` apart, as many as a greedy search finds.
    ``shared`` is the most tasks whose mixtures lie within that distance of one task's, itself included. ``widest`` is
    the largest distance between two tasks.
    """

    num_tasks: int
    distinct: int
    shared: int
    widest: float

    @property
    def routes(self) -> bool:
        """Whether no mixture serves more than half of the tasks."""
        return self.num_tasks > 1 and 2 * self.shared <= self.num_tasks


def mixtures(alpha: Mapping[str, Sequence[float]]) -> Mixtures:
    """Count the different mixtures among the rows of ``alpha``, task → weight of every expert."""
    rows = list(alpha.values())
    gaps = [[sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 2 for b in rows] for a in rows]
    apart = max(range(len(rows)), key=lambda task: max(gaps[task]), default=0)
    chosen = [apart][: len(rows)]
    while chosen:
        nearest = {task: min(gaps[task][other] for other in chosen) for task in range(len(rows))}
        farthest = max(nearest, key=lambda task: nearest[task])
        if nearest[farthest] < SAME_BELOW:
            break
        chosen.append(farthest)
    shared = max((sum(gap < SAME_BELOW for gap in line) for line in gaps), default=0)
    return Mixtures(len(rows), len(chosen), shared, max((max(line) for line in gaps), default=0.0))


def sentence(counted: Mixtures) -> str:
    """Say in words whether the router routes."""
    if counted.num_tasks < 2:
        return "One task alone: the router has nothing to distinguish."
    size = f"largest distance between two tasks {counted.widest:.2g}; mixtures closer than {SAME_BELOW} count as one"
    facts = f"{plural(counted.distinct, 'distinct mixture')} among {counted.num_tasks} tasks"
    if counted.routes:
        return f"The router routes: {facts}, and none serves more than half of the tasks ({size})."
    share = f"{counted.shared} of {counted.num_tasks} tasks share one mixture"
    plain = " All experts then act as one plain LoRA." if counted.shared == counted.num_tasks else ""
    return f"The router does not route: {facts}, and {share} ({size}).{plain}"


def routing(run: Run) -> list[Part]:
    """The router's weights in the last round, and the way there."""
    rounds = [line for line in run.lines(Routing) if line.alpha]
    if not rounds:
        return []
    last = rounds[-1]
    num_experts = max(map(len, last.alpha.values()))
    top = max(3 / num_experts, *(weight for line in rounds for alpha in line.alpha.values() for weight in alpha))
    rows = []
    for task, alpha in last.alpha.items():
        cells = [Cell(number(weight, 2), heat=round(100 * weight / top)) for weight in alpha]
        rows.append(Row(run.title(task), [*cells, number(last.entropy.get(task), 2)]))
    heads = [*columns("Task", *(str(n + 1) for n in range(num_experts)), style=""), *columns("entropy")]
    most = f"The largest possible entropy is ln {num_experts} = {math.log(num_experts):.2f}."
    text = Text(f"{sentence(mixtures(last.alpha))} {most}")
    caption = f"Weight of each expert by task, round {last.round}"
    table = Table("Expert weights", heads, [Group(rows)], "heat", caption)
    return [text, table, *_by_round(run, rounds, top), *_distance(rounds)]


def _by_round(run: Run, rounds: Sequence[Routing], top: float) -> list[Part]:
    if len(rounds) < 2:
        return []
    text = f"Experts downwards, rounds to the right; full colour is a weight of {number(top, 2)}. "
    text += "Below, the entropy of the mixture between 0 (one expert) and ln P (all alike)."
    figures = []
    for task in run.ordered(task for line in rounds for task in line.alpha):
        lines = [(line.round, line.alpha.get(task, ()), line.entropy.get(task)) for line in rounds]
        figures.append(Figure(run.title(task), strip(lines, run.title(task), top)))
    return [Text("Expert weights round by round", "h3"), Text(text, "soft small"), Figures(figures)]


def _distance(rounds: Sequence[Routing]) -> list[Part]:
    points = [(float(line.round), line.total_variation) for line in rounds if line.total_variation is not None]
    if len(points) < 2:
        return []
    chart = line_chart([Series("total-variation distance", "fedkim", points)], "round", "Distance")
    text = "Total-variation distance between the weights of two tasks, mean over all pairs."
    figures = Figures([Figure("Distance", chart)], layout="three", captions=False)
    return [Text("Distance between the tasks", "h3"), Text(text, "soft small"), figures]


def routers_in_markdown(comparison: ComparisonFile) -> list[str]:
    """The tasks' mixtures of experts by round, in Markdown: a line per cell, a column per round."""
    text = []
    for title, values, note in _mixtures(comparison):
        rounds = sorted({number for by_round in values.values() for number in by_round})
        lines = [
            [label, *(_mean_text(values[label].get(number)) for number in rounds)]
            for label in comparison.labels
            if label in values
        ]
        table = markdown_table(["round", *map(str, rounds)], lines, "--:")
        text += [f"## {title}", note, table] * bool(lines)
    return text


def _mixtures(comparison: ComparisonFile) -> list[tuple[str, Mapping[str, Mapping[int, Sequence[float]]], str]]:
    """Title, values and note of the two measures of the router."""
    distance = "Total-variation distance between the weights of two tasks, mean over all pairs and seeds."
    entropy = "Mean over tasks and seeds, in nats: ln P where all experts weigh alike, 0 where one has all the weight."
    return [
        ("Distance between the tasks' mixtures", comparison.distances, distance),
        ("Entropy of the mixtures", comparison.entropies, entropy),
    ]


def _mean_text(values: Sequence[float] | None) -> str:
    """The mean over runs to two digits that count: a distance grows from 1e-4 to 1e-1."""
    return f"{sum(values) / len(values):.2g}" if values else MISSING


def routers(comparison: ComparisonFile, styles: Sequence[str]) -> list[Part]:
    """The tasks' mixtures of experts round by round, a line per cell."""
    figures, notes, legend = [], [], dict[str, Legend]()
    for title, values, note in _mixtures(comparison):
        series = []
        for place, label in enumerate(comparison.labels):
            by_round = sorted(values.get(label, {}).items())
            points = [(float(number), sum(runs) / len(runs)) for number, runs in by_round]
            style = styles[min(place, len(styles) - 1)]
            if len(points) > 1:
                series.append(Series(label, style, points))
                legend[label] = Legend(label, style)
        if series:
            figures.append(Figure(title, line_chart(series, "round", title)))
            notes.append(Text(f"{title}. {note}", "soft small"))
    return when(figures, *notes, Figures(figures, list(legend.values())))
