"""Radar charts, as in Figure 2 of the FedKIM paper: one axis per unseen task, one polygon per model.

Deviation: the paper's axes have no printed range and no trivial predictor. Here every axis says where it starts and
ends, fixed before any number is seen, and the best constant answer of each task is a polygon of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from markupsafe import Markup

from medfed.report.names import number
from medfed.report.svg import coordinate, tag

WIDTH, HEIGHT, RADIUS = 490.0, 350.0, 118.0
CENTRE = (WIDTH / 2, HEIGHT / 2)
LEAST_AXES = 3
"""With fewer axes a polygon has no area; the report then leaves the radar out."""
RING = 0.25
"""Distance of the rings, in the metric's units; all metrics drawn here are fractions."""
LINE_LETTERS, LINE_HEIGHT = 18, 14
"""An axis title longer than this is broken into lines."""


@dataclass(frozen=True)
class Axis:
    """One spoke: its title, and the values at centre and rim."""

    title: str
    low: float
    high: float


@dataclass(frozen=True)
class Polygon:
    """One model: a value per axis; None where it has none."""

    name: str
    style: str
    values: Sequence[float | None]


def radar_chart(axes: Sequence[Axis], polygons: Sequence[Polygon], what: str) -> Markup:
    """Draw ``polygons`` over ``axes`` of one range; a value below it is drawn at the centre, and named on hover."""
    shares = [_share(axes[0], step * RING) for step in range(1, 5) if step * RING > axes[0].low]
    rings = [_outline([share] * len(axes), class_="ring") for share in shares]
    spokes = [tag("line", x1=CENTRE[0], y1=CENTRE[1], x2=x, y2=y, class_="grid") for x, y in _places([1.0] * len(axes))]
    labels = [_label(axis, index, len(axes)) for index, axis in enumerate(axes)]
    scale = [_ring_label(axes[0], share) for share in shares]
    shapes = [mark for polygon in polygons for mark in _shape(axes, polygon)]
    told = "; ".join(f"{p.name}: {_told(axes, p)}" for p in polygons)
    box = f"0 0 {coordinate(WIDTH)} {coordinate(HEIGHT)}"
    return tag(
        "svg",
        *rings,
        *spokes,
        *scale,
        *shapes,
        *labels,
        viewBox=box,
        role="img",
        aria_label=f"{what}, axes from {axes[0].low:g} to {axes[0].high:g}. {told}",
        class_="chart radar",
    )


def _shape(axes: Sequence[Axis], polygon: Polygon) -> list[Markup]:
    known = [index for index, value in enumerate(polygon.values) if value is not None]
    shares = [_share(axis, value) for axis, value in zip(axes, polygon.values, strict=True) if value is not None]
    places = [_place(share, index, len(axes)) for share, index in zip(shares, known, strict=True)]
    points = " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in places)
    marks = [tag("polygon", points=points, class_=f"area {polygon.style}")]
    for index, (x, y) in zip(known, places, strict=True):
        hover = tag("title", f"{polygon.name}, {axes[index].title}: {number(polygon.values[index])}")
        marks.append(tag("circle", hover, cx=x, cy=y, r=3.0, class_=f"dot {polygon.style}"))
    return marks


def _label(axis: Axis, index: int, count: int) -> Markup:
    x, y = _place(1.0 + 16 / RADIUS, index, count)
    side = x - CENTRE[0]
    anchor = "middle" if abs(side) < 1 else "start" if side > 0 else "end"
    lines = [*wrap(axis.title, LINE_LETTERS, break_long_words=False), f"{axis.low:g} to {axis.high:g}"]
    top = y - (len(lines) - 1) * LINE_HEIGHT if y < CENTRE[1] - RADIUS / 2 else y + 4
    spans = [
        tag("tspan", line, x=x, y=top + LINE_HEIGHT * place, class_="soft" if place == len(lines) - 1 else "strong")
        for place, line in enumerate(lines)
    ]
    return tag("text", *spans, class_=f"label {anchor}")


def _ring_label(axis: Axis, share: float) -> Markup:
    x, y = CENTRE[0] + 4, CENTRE[1] - share * RADIUS + (11 if share == 1 else -3)
    return tag("text", f"{axis.low + share * (axis.high - axis.low):.2g}", x=x, y=y, class_="tick")


def _outline(shares: Sequence[float], **attributes: object) -> Markup:
    points = " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in _places(shares))
    return tag("polygon", points=points, **attributes)


def _places(shares: Sequence[float]) -> list[tuple[float, float]]:
    return [_place(share, index, len(shares)) for index, share in enumerate(shares)]


def _place(share: float, index: int, count: int) -> tuple[float, float]:
    """Where ``share`` of the radius lies on the index-th of ``count`` spokes; the first points up, then clockwise."""
    angle = 2 * math.pi * index / count
    return CENTRE[0] + share * RADIUS * math.sin(angle), CENTRE[1] - share * RADIUS * math.cos(angle)


def _share(axis: Axis, value: float) -> float:
    return min(max((value - axis.low) / (axis.high - axis.low), 0.0), 1.0)


def _told(axes: Sequence[Axis], polygon: Polygon) -> str:
    return ", ".join(f"{axis.title} {number(value)}" for axis, value in zip(axes, polygon.values, strict=True))
