"""Expert weights over the rounds: one heat map per task, expert by round, with the mixture's entropy below it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from medfed.report.figures import Figure
from medfed.report.names import number, ordered, task_title
from medfed.report.read import RunFiles
from medfed.report.records import Routing
from medfed.report.svg import coordinate, tag

WIDTH, LEFT, TOP, ROW, FOOT = 250.0, 24.0, 17.0, 11.0, 46.0
"""Of one picture in user units: width, left margin, head, height of an expert's row, height of the entropy line."""
FAINTEST = 0.04
"""Opacity of a weight of zero: the cell stays visible."""


def strips(run: RunFiles, top: float) -> list[Figure]:
    """One heat map per task, a weight of ``top`` in full colour; none before there are two rounds to compare."""
    if len(run.routing) < 2:
        return []
    tasks = ordered(run, [task for line in run.routing for task in line.alpha])
    return [Figure(task_title(run, task), strip(run.routing, task, task_title(run, task), top)) for task in tasks]


def strip(rounds: Sequence[Routing], task: str, title: str, top: float) -> Markup:
    """Draw one task's weights, experts downwards, rounds to the right."""
    num_experts = max(len(line.alpha.get(task, [])) for line in rounds)
    foot = TOP + num_experts * ROW
    last = rounds[-1].alpha.get(task, [])
    told = f", heaviest in the last: expert {last.index(max(last)) + 1} with {number(max(last), 2)}" if last else ""
    what = f"{title}: weights of {num_experts} experts over {len(rounds)} rounds{told}"
    marks = [*_cells(rounds, task, top), *_labels(rounds, num_experts), *_entropy(rounds, task, num_experts, foot)]
    box = f"0 0 {coordinate(WIDTH)} {coordinate(foot + FOOT)}"
    return tag("svg", *marks, viewBox=box, role="img", aria_label=what, class_="chart")


def _cells(rounds: Sequence[Routing], task: str, top: float) -> list[Markup]:
    return [
        tag(
            "rect",
            tag("title", f"round {line.round}, expert {row + 1}: {number(weight)}"),
            x=_x(column, rounds) + 0.5,
            y=TOP + row * ROW + 0.5,
            width=_width(rounds) - 1,
            height=ROW - 1,
            fill_opacity=max(min(weight / top, 1.0), FAINTEST),
            class_="alpha",
        )
        for column, line in enumerate(rounds)
        for row, weight in enumerate(line.alpha.get(task, []))
    ]


def _labels(rounds: Sequence[Routing], num_experts: int) -> list[Markup]:
    columns = [
        tag("text", str(rounds[at].round), x=_x(at, rounds) + _width(rounds) / 2, y=TOP - 5, class_="tick middle")
        for at in (0, len(rounds) - 1)
    ]
    rows = [
        tag("text", str(row + 1), x=LEFT - 6, y=TOP + (row + 0.5) * ROW + 4, class_="tick end")
        for row in sorted({0, num_experts - 1})
    ]
    return [*columns, tag("text", "round", x=(LEFT + WIDTH) / 2, y=TOP - 5, class_="tick middle"), *rows]


def _entropy(rounds: Sequence[Routing], task: str, num_experts: int, foot: float) -> list[Markup]:
    """The entropy between 0 (one expert) and ln P (all alike), the two grid lines."""
    low, high = foot + FOOT - 4, foot + 10
    points = []
    for column, line in enumerate(rounds):
        if (nats := line.entropy.get(task)) is not None:
            y = low - (low - high) * nats / (math.log(num_experts) or 1.0)
            points.append((_x(column, rounds) + _width(rounds) / 2, y, f"round {line.round}: {number(nats, 2)}"))
    joined = " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y, _ in points)
    grid = [tag("line", x1=LEFT, x2=WIDTH, y1=y, y2=y, class_="grid") for y in (low, high)]
    names = [tag("text", text, x=LEFT - 6, y=y + 4, class_="tick end") for text, y in (("0", low), ("ln P", high))]
    dots = [tag("circle", tag("title", hover), cx=x, cy=y, r=2.4, class_="dot fedkim") for x, y, hover in points]
    return [*grid, *names, tag("polyline", points=joined, class_="line fedkim"), *dots]


def _width(rounds: Sequence[Routing]) -> float:
    return (WIDTH - LEFT) / len(rounds)


def _x(column: int, rounds: Sequence[Routing]) -> float:
    return LEFT + column * _width(rounds)
