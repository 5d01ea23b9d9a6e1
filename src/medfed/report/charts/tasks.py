"""Pictures with a place per task: the radar of unseen tasks, and a task's weights of experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import wrap
from typing import Any, NamedTuple

from markupsafe import Markup

from medfed.report.charts.drawing import Point, add_tip, draw_box, draw_dot, draw_text, drawing, svg_of, tone
from medfed.report.text import number

LEAST_AXES, RING = 3, 0.25
"""A radar of fewer axes has no area; its rings are so far apart, as all metrics on radars are fractions."""
FAINTEST = 0.04
"""Opacity of a weight of zero: its cell stays visible."""


class Polygon(NamedTuple):
    """One model of a radar: a value per axis; None where it has none."""

    name: str
    style: str
    values: Sequence[float | None]


def radar_chart(titles: Sequence[str], limits: Point, polygons: Sequence[Polygon], what: str) -> Markup:
    """Draw polygons over one axis per task, as Figure 2 of the FedKIM paper does.

    Deviation: the paper's axes have no printed range. Here ``limits`` are printed at every axis; a value below them is
    drawn in the centre, and its tip has the number.
    """
    low, high = limits
    angles = [2 * math.pi * index / len(titles) for index in range(len(titles))]
    with drawing(490, 350, (127, 127, 57, 57), polar=True) as axes:
        _radar_axes(axes, angles, titles, limits)
        for polygon in polygons:
            known = [(a, t, v) for a, t, v in zip(angles, titles, polygon.values, strict=True) if v is not None]
            if not known:
                continue
            corners = [(angle, min(max(value, low), high)) for angle, _, value in known]
            quiet = polygon.style == "constant"
            edge: dict[str, Any] = {"ls": (0, (4, 3)), "lw": 1.2} if quiet else {"lw": 2}
            axes.fill(*zip(*corners, strict=True), fc=tone(polygon.style), alpha=0.16 if quiet else 0.1)
            axes.plot(*zip(*corners, corners[0], strict=True), color=tone(polygon.style), **edge)
            for corner, (_, title, value) in zip(corners, known, strict=True):
                draw_dot(axes, corner, polygon.style, f"{polygon.name}, {title}: {number(value)}")
        lines = [", ".join(f"{t} {number(v)}" for t, v in zip(titles, p.values, strict=True)) for p in polygons]
        values = "; ".join(f"{p.name}: {line}" for p, line in zip(polygons, lines, strict=True))
        return svg_of(axes, f"{what}, axes from {low:g} to {high:g}", values, "radar")


def _radar_axes(axes: Any, angles: Sequence[float], titles: Sequence[str], limits: Point) -> None:
    """Put a title and its range at every axis, and a ring every :data:`RING`."""
    low, high = limits
    axes.set(theta_zero_location="N", theta_direction=-1, ylim=limits)
    axes.spines["polar"].set_visible(False)
    rings = [step * RING for step in range(1, 5) if step * RING > low]
    axes.set_rgrids(rings, [f"{ring:.2g}" for ring in rings], angle=0, ha="left", va="top")
    axes.set_xticks(angles, [""] * len(angles))
    axes.grid(color=tone("rule"), axis="both")
    for angle, title in zip(angles, titles, strict=True):
        side, height = round(math.sin(angle), 6), math.cos(angle)
        across = "center" if side == 0 else "left" if side > 0 else "right"
        down = "bottom" if height > 0.5 else "top" if height < -0.5 else "center"
        text = "\n".join([*wrap(title, 18, break_long_words=False), f"{low:g} to {high:g}"])
        axes.text(angle, low + 1.14 * (high - low), text, ha=across, va=down, color=tone("ink"))


def strip(lines: Sequence[tuple[int, Sequence[float], float | None]], what: str, top: float) -> Markup:
    """Draw a task's weights round by round, experts downwards and rounds to the right, above the mixture's entropy.

    A line is a round, the weight of every expert and the entropy in nats. A weight of ``top`` has full colour. The
    entropy's axis runs from 0 to ln(number of experts).
    """
    left, head, row, foot, wide = 24.0, 17.0, 11.0, 46.0, 250.0
    rounds, weights, entropy = zip(*lines, strict=True)
    experts = max(map(len, weights))
    bottom, width = head + row * experts, (wide - left) / len(rounds)
    low, high = bottom + foot - 4, bottom + 10
    with drawing(wide, bottom + foot, None) as axes:
        for column, (name, shares, _) in enumerate(lines):
            for place, weight in enumerate(shares):
                corner = (left + column * width + 0.5, head + place * row + 0.5)
                box = draw_box(axes, corner, (width - 1, row - 1), "fedkim", max(min(weight / top, 1.0), FAINTEST))
                add_tip(box, f"round {name}, expert {place + 1}: {number(weight)}")
        for column in sorted({0, len(rounds) - 1}):
            draw_text(axes, left + (column + 0.5) * width, head - 5, str(rounds[column]), "center")
        draw_text(axes, (left + wide) / 2, head - 5, "round", "center")
        for place in sorted({0, max(experts - 1, 0)}):
            draw_text(axes, left - 6, head + (place + 0.5) * row + 4, str(place + 1), "right")
        for y, label in ((low, "0"), (high, "ln P")):
            axes.plot((left, wide), (y, y), color=tone("grid"), lw=1)
            draw_text(axes, left - 6, y + 4, label, "right")
        most = math.log(max(experts, 2))
        known = [(column, value) for column, value in enumerate(entropy) if value is not None]
        points = [(left + (column + 0.5) * width, low - (low - high) * value / most) for column, value in known]
        axes.plot([x for x, _ in points], [y for _, y in points], color=tone("fedkim"), lw=2)
        for point, (column, value) in zip(points, known, strict=True):
            draw_dot(axes, point, "fedkim", f"round {rounds[column]}: {number(value, 2)}", 4.8)
        heaviest = ""
        if last := weights[-1]:
            heaviest = f"Heaviest in the last: expert {last.index(max(last)) + 1} with {number(max(last), 2)}"
        return svg_of(axes, f"{what}: weights of {experts} experts over {len(rounds)} rounds", heaviest)
