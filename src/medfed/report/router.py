"""Does the router route? Expert weights by task, round by round, and how far the tasks lie apart.

A router whose weights are the same for every task makes the mixture of experts one plain LoRA; the report says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from medfed.report.figures import Figure, Heat, Series, heat, line_chart, padded
from medfed.report.names import number, task_title
from medfed.report.read import RunFiles
from medfed.report.strips import strips

ROUTES_ABOVE = 0.05
"""Total-variation distance between tasks' expert weights from which the router is said to route."""


@dataclass(frozen=True)
class Routing:
    """The router in the last round, and its way there."""

    sentence: str
    routes: bool
    round: int
    num_experts: int
    rows: list[tuple[str, list[Heat], str]]
    figure: Figure | None
    top: str
    strips: list[Figure]


def routing(run: RunFiles) -> Routing | None:
    """The router's weights in the last round, and whether it routes."""
    if not run.routing:
        return None
    last = run.routing[-1]
    num_experts = max((len(alpha) for alpha in last.alpha.values()), default=0)
    heaviest = max((weight for line in run.routing for alpha in line.alpha.values() for weight in alpha), default=1.0)
    top = max(heaviest, 3 / (num_experts or 1))
    rows = [
        (
            task_title(run, task),
            [heat(weight, top, number(weight, 2)) for weight in alpha],
            number(last.entropy.get(task), 2),
        )
        for task, alpha in last.alpha.items()
    ]
    distance = [(float(r.round), r.total_variation) for r in run.routing if r.total_variation is not None]
    figure = None
    if len(distance) > 1:
        line = [Series("total-variation distance", "fedkim", distance)]
        span = padded([value for _, value in distance] + [2 * ROUTES_ABOVE], 0.0)
        figure = Figure("Distance between tasks", line_chart(line, "round", "Distance", span, ROUTES_ABOVE))
    sentence, routes = _routing_sentence(last.total_variation, num_experts)
    return Routing(sentence, routes, last.round, num_experts, rows, figure, number(top, 2), strips(run, top))


def _routing_sentence(distance: float | None, num_experts: int) -> tuple[str, bool]:
    entropy = f"The largest possible entropy is ln {num_experts} = {math.log(num_experts or 1):.2f}."
    if distance is None:
        return f"The run did not record how far the tasks' expert weights lie apart. {entropy}", False
    size = f"total-variation distance {distance:.2g}, threshold {ROUTES_ABOVE}"
    if distance >= ROUTES_ABOVE:
        return f"The router routes: tasks use different mixtures of experts ({size}). {entropy}", True
    told = "all tasks use nearly the same mixture of experts, which then acts as one plain LoRA"
    return f"The router does not route: {told} ({size}). {entropy}", False
