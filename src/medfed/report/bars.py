"""Bars of an ablation: one per cell, standing on the constant predictor's line, with whisker and a dot per seed.

A bar that starts at zero shows mostly what a constant answer reaches as well. Here it starts at what the best constant
answer of the task reaches, so its length is what was gained, or lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from medfed.report.names import number
from medfed.report.svg import coordinate, tag, ticks

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 280.0, 150.0, 34.0, 6.0, 8.0, 8.0
GAP = 0.22
"""Share of a bar's place that stays empty."""


@dataclass(frozen=True)
class Bar:
    """One cell: its value, interval and the values of its seeds."""

    name: str
    style: str
    value: float | None
    low: float | None
    high: float | None
    seeds: Sequence[float] = ()


def bar_chart(bars: Sequence[Bar], level: float, limits: tuple[float, float], what: str) -> Markup:
    """Draw ``bars`` from ``level`` on an axis over ``limits``; what lies outside is cut at the edge."""

    def y(value: float) -> float:
        share = (min(max(value, limits[0]), limits[1]) - limits[0]) / (limits[1] - limits[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    axis = [
        mark
        for at, label in ticks(*limits, 4).items()
        for mark in (
            tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(at), y2=y(at), class_="grid"),
            tag("text", label, x=LEFT - 6, y=y(at) + 3.5, class_="tick end"),
        )
    ]
    place = (WIDTH - LEFT - RIGHT) / max(len(bars), 1)
    marks = []
    for index, bar in enumerate(bars):
        if bar.value is None:
            continue
        left, width = LEFT + (index + GAP / 2) * place, (1 - GAP) * place
        top, foot = sorted((y(bar.value), y(level)))
        hover = tag("title", told(bar))
        box = {"x": left, "y": top, "width": width, "height": max(foot - top, 0.5)}
        marks.append(tag("rect", hover, class_=f"bar pale {bar.style}", **box))
        marks += _spread(bar, left + width / 2, width, y)
    line = tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(level), y2=y(level), class_="chance")
    described = "; ".join(told(bar) for bar in bars)
    box_text = f"0 0 {coordinate(WIDTH)} {coordinate(HEIGHT)}"
    label = f"{what}, axis from {limits[0]:g} to {limits[1]:g}, best constant answer {number(level)}. {described}"
    return tag("svg", *axis, *marks, line, viewBox=box_text, role="img", aria_label=label, class_="chart")


def told(bar: Bar) -> str:
    """Say a bar in words."""
    bounds = f" [{number(bar.low, 2)}, {number(bar.high, 2)}]" if bar.low is not None and bar.high is not None else ""
    return f"{bar.name} {number(bar.value)}{bounds}"


def _spread(bar: Bar, middle: float, width: float, y: Callable[[float], float]) -> list[Markup]:
    marks = []
    if bar.low is not None and bar.high is not None:
        ends = {"x1": middle, "x2": middle, "y1": y(bar.low), "y2": y(bar.high)}
        marks.append(tag("line", class_=f"whisker {bar.style}", **ends))
    reach = min(width * 0.32, 9.0)
    for index, value in enumerate(bar.seeds if len(bar.seeds) > 1 else ()):
        x = middle + reach * (2 * index / (len(bar.seeds) - 1) - 1)
        marks.append(tag("circle", cx=x, cy=y(value), r=1.9, class_=f"seed {bar.style}"))
    return marks
