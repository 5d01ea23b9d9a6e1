"""Lines over rounds or steps, reliability curves, and the recordings of an example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from medfed.report.charts.drawing import DASHED, MAX_DOTS, Point, add_tip, draw_dot, drawing, svg_of, tone
from medfed.report.text import number

BOX_SECONDS, BOX_MILLIVOLTS = 0.2, 0.5
"""One large box of ECG paper."""


class Series(NamedTuple):
    """One line: its name, its colour, its points by x."""

    name: str
    style: str
    points: Sequence[Point]
    dots: bool = True


def line_chart(
    series: Sequence[Series], x_label: str, what: str, y: Point | None = None, reference: float | None = None
) -> Markup:
    """Draw lines over rounds or steps; ``y`` is the axis' range and ``reference`` a dashed level."""
    xs, ys = zip(*(point for line in series for point in line.points), strict=True)
    low, high = y or (min(0.0, *ys), max(0.0, *ys))
    if y is None:
        high = high + 0.05 * (high - low) if high > low else low + 1.0
    with drawing(280, 190) as axes:
        margin = 0.0 if max(xs) > min(xs) else 0.5
        axes.set(xlim=(min(xs) - margin, max(xs) + margin), ylim=(low, high), xlabel=x_label)
        if reference is not None and low <= reference <= high:
            axes.plot(axes.get_xlim(), (reference, reference), **DASHED)
        for line in series:
            axes.plot(*zip(*line.points, strict=True), color=tone(line.style), lw=2)
            for x, value in line.points if line.dots and len(line.points) <= MAX_DOTS else ():
                draw_dot(axes, (x, value), line.style, f"{line.name}: {value:.4g} at {x:g}")
        ends = "; ".join(f"{line.name} ends at {line.points[-1][1]:.3g}" for line in series)
        return svg_of(axes, f"{what} by {x_label}", ends)


def reliability_chart(curves: Sequence[tuple[str, str, Sequence[tuple[float, float, int]]]], what: str) -> Markup:
    """Draw observed frequency over predicted probability.

    A curve is a name, a colour and points (predicted, observed, number of examples). A dot's area is its share.
    """
    with drawing(280, 230) as axes:
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability")
        axes.locator_params("x", integer=False)
        axes.plot((0, 1), (0, 1), **DASHED)
        for name, style, points in curves:
            axes.plot([x for x, *_ in points], [y for _, y, _ in points], color=tone(style), lw=1.2, alpha=0.55)
            total = sum(count for *_, count in points) or 1
            for x, y, count in points:
                size = 4.0 + 14.0 * math.sqrt(count / total)
                (dot,) = axes.plot(x, y, "o", ms=size, mfc=tone(style), mew=0, alpha=0.4)
                add_tip(dot, f"{name}: predicted {x:.2f}, observed {y:.2f}, n {count}")
        return svg_of(axes, f"{what}: observed frequency against predicted probability")


def trace_picture(title: str, values: Sequence[float | None], seconds: float, unit: str) -> Markup:
    """Draw an ECG on its paper; the voltage range is the trace's own, rounded outwards to whole boxes."""
    known = [value for value in values if value is not None] or [0.0]
    low, high = int(min(0.0, *known) / BOX_MILLIVOLTS - 1), int(max(0.0, *known) / BOX_MILLIVOLTS + 1)
    boxes = round(seconds / BOX_SECONDS) or 1
    with drawing(300, 84, (0, 0, 0, 0)) as axes:
        axes.set(xlim=(0, boxes), ylim=(low * BOX_MILLIVOLTS, high * BOX_MILLIVOLTS))
        axes.vlines(range(boxes + 1), *axes.get_ylim(), color=tone("paper"), lw=0.6)
        axes.hlines(BOX_MILLIVOLTS * np.arange(low, high + 1), 0, boxes, color=tone("paper"), lw=0.6)
        places = [boxes * index / max(len(values) - 1, 1) for index in range(len(values))]
        axes.plot(places, np.array(values, float), color=tone("ink"), lw=1.1)
        axes.set_axis_off()
        span = f"{seconds:g} s from {number(min(known), 2)} to {number(max(known), 2)} {unit}"
        return svg_of(axes, title, span, "trace")


def line_picture(title: str, values: Sequence[float | None]) -> Markup:
    """Draw one variable by the hour: a dot per measurement, a line through consecutive ones; nothing if none."""
    known = [value for value in values if value is not None]
    if not known:
        return Markup()
    with drawing(240, 24, (3, 3, 4, 4)) as axes:
        axes.plot(np.array(values, float), "o-", color=tone("ink"), lw=1.1, ms=3, mew=0)
        spread = 0.5 * (max(known) == min(known))
        axes.set(xlim=(0, max(len(values) - 1, 1)), ylim=(min(known) - spread, max(known) + spread))
        axes.set_axis_off()
        span = f"{len(known)} of {len(values)} hours measured, from {min(known):g} to {max(known):g}"
        return svg_of(axes, f"{title} by hour", span)
