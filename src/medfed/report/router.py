"""Does the router route? Expert weights by task, round by round, and how many mixtures the tasks use.

A router whose weights are the same for every task makes the mixture of experts one plain LoRA; the report says so. One
task that differs from eleven equal ones moves any mean over pairs of tasks. So the statement counts: the number of
mixtures that are pairwise different, and of tasks that share the most common one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from medfed.records.schema import Routing
from medfed.report.charts import Series, line_chart, padded, strip
from medfed.report.html import Cell, Figure, Figures, Group, Part, Row, Table, Text, columns
from medfed.report.run import Run
from medfed.report.text import number, plural

SAME_BELOW = 0.05
"""Total-variation distance below which two mixtures count as one: 5 % of the weight lies on other experts."""


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
    span = padded([value for _, value in points], 0.0)
    chart = line_chart([Series("total-variation distance", "fedkim", points)], "round", "Distance", span)
    text = "Total-variation distance between the weights of two tasks, mean over all pairs."
    figures = Figures([Figure("Distance", chart)], layout="three", captions=False)
    return [Text("Distance between the tasks", "h3"), Text(text, "soft small"), figures]
