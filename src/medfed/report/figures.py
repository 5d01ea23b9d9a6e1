"""The report's pictures as inline SVG: interval tracks, learning curves, reliability, traffic and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from medfed.evaluation.metrics import ReliabilityPoint
from medfed.report.records import ScoreRow
from medfed.report.svg import Frame, tag, ticks

Point = tuple[float, float]
NUM_COLOURS = 6
"""Lines beyond this many are drawn alike; a legend would tell nobody anything."""
MAX_DOTS = 30
"""Lines of more points are drawn without dots."""


@dataclass(frozen=True)
class Figure:
    """A titled picture."""

    title: str
    picture: Markup


@dataclass(frozen=True)
class Legend:
    """One entry of a legend: text and CSS class."""

    text: str
    style: str


@dataclass(frozen=True)
class Heat:
    """A shaded table cell: text and the share of the scale's top, in percent."""

    text: str
    percent: int


@dataclass(frozen=True)
class Series:
    """One line: its name, the CSS class that colours it, its points by x."""

    name: str
    style: str
    points: Sequence[Point]
    dots: bool = True


@dataclass(frozen=True)
class Scale:
    """The common axis of the interval tracks."""

    low: float
    high: float

    def percent(self, value: float) -> str:
        """Place of ``value`` along the track."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return f"{100 * share:.2f}%"


def interval_scale(rows: Sequence[ScoreRow]) -> Scale:
    """Return a scale from a round number below all intervals (and below 0.5) to 1."""
    lows = [value for row in rows for value in (row.ci_low, row.value) if value is not None]
    return Scale(max(0.0, np.floor(min([0.4, *lows]) * 10) / 10), 1.0)


def interval_track(row: ScoreRow | None, scale: Scale, style: str) -> Markup:
    """Draw a value with its interval on the scale, without a viewBox, so that it stretches and stays sharp."""
    parts = [
        tag("line", x1=scale.percent(x), x2=scale.percent(x), y1=0, y2=28, class_="grid")
        for x in ticks(scale.low, scale.high)
    ]
    parts.append(tag("line", x1=scale.percent(0.5), x2=scale.percent(0.5), y1=0, y2=28, class_="chance"))
    if row is not None and row.value is not None:
        if row.ci_low is not None and row.ci_high is not None:
            low, high = scale.percent(row.ci_low), scale.percent(row.ci_high)
            parts.append(tag("line", x1=low, x2=high, y1=14, y2=14, class_=f"whisker {style}"))
        parts.append(tag("circle", cx=scale.percent(row.value), cy=14, r=5, class_=f"dot {style}"))
    return tag("svg", *parts, class_="track", height=28, aria_hidden="true")


def track_axis(scale: Scale) -> Markup:
    """Tick labels of the tracks."""
    labels = [
        tag("text", label, x=scale.percent(x), y=12, class_="tick middle")
        for x, label in ticks(scale.low, scale.high).items()
    ]
    return tag("svg", *labels, class_="track", height=16, aria_hidden="true")


def line_chart(
    series: Sequence[Series],
    x_label: str,
    what: str,
    y: tuple[float, float] | None = None,
    reference: float | None = None,
) -> Markup:
    """Draw lines over rounds or steps; ``reference`` is a dashed level, named in the text beside the figure."""
    points = [point for line in series for point in line.points]
    xs, ys = [x for x, _ in points], [value for _, value in points]
    margin = 0.0 if max(xs) > min(xs) else 0.5
    frame = Frame((min(xs) - margin, max(xs) + margin), y or padded(ys, 0.0), x_label)
    level = []
    if reference is not None and frame.y[0] <= reference <= frame.y[1]:
        level = [frame.path([(frame.x[0], reference), (frame.x[1], reference)], class_="chance")]
    marks = [mark for line in series for mark in _line(frame, line)]
    ends = "; ".join(f"{line.name} ends at {line.points[-1][1]:.3g}" for line in series if line.points)
    return frame.svg(f"{what} by {x_label}. {ends}", *level, *marks)


def reliability_chart(curves: Sequence[tuple[str, str, list[ReliabilityPoint]]], what: str) -> Markup:
    """Draw observed frequency over predicted probability; a dot's area is its share of the examples."""
    frame = Frame((0.0, 1.0), (0.0, 1.0), "predicted probability", height=230.0, integer_x=False)
    marks: list[Markup] = [frame.path([(0.0, 0.0), (1.0, 1.0)], class_="chance")]
    for name, style, points in curves:
        total = sum(point.num_examples for point in points) or 1
        marks.append(frame.path([(p.confidence, p.observed) for p in points], class_=f"line thin {style}"))
        for point in points:
            hover = f"{name}: predicted {point.confidence:.2f}, observed {point.observed:.2f}, n {point.num_examples}"
            radius = 2.0 + 7.0 * float(np.sqrt(point.num_examples / total))
            x, y = frame.px(point.confidence), frame.py(point.observed)
            marks.append(tag("circle", tag("title", hover), cx=x, cy=y, r=radius, class_=f"bubble {style}"))
    return frame.svg(f"{what}: observed frequency against predicted probability", *marks)


def stacked_bars(layers: Sequence[Series], x_label: str, what: str) -> Markup:
    """Draw one bar per x, its layers on top of each other."""
    xs = sorted({x for layer in layers for x, _ in layer.points})
    totals = {x: sum(value for layer in layers for at, value in layer.points if at == x) for x in xs}
    frame = Frame((min(xs) - 0.5, max(xs) + 0.5), (0.0, max(totals.values()) * 1.05 or 1.0), x_label)
    width = 0.72 * (frame.px(1.0) - frame.px(0.0))
    base = dict.fromkeys(xs, 0.0)
    bars: list[Markup] = []
    for layer in layers:
        for x, value in layer.points:
            top, bottom = frame.py(base[x] + value), frame.py(base[x])
            hover = tag("title", f"{layer.name}, {x_label} {x:g}: {value:.4g}")
            box = {"x": frame.px(x) - width / 2, "y": top, "width": width, "height": bottom - top}
            bars.append(tag("rect", hover, class_=f"bar {layer.style}", **box))
            base[x] += value
    sums = "; ".join(f"{layer.name} {sum(value for _, value in layer.points):.4g} in all" for layer in layers)
    return frame.svg(f"{what} by {x_label}. {sums}", *bars)


def heat(value: float, top: float, text: str) -> Heat:
    """Shade ``value`` against ``top``."""
    return Heat(text, round(100 * value / top) if top > 0 else 0)


def colour(index: int, total: int) -> str:
    """CSS class of the index-th of ``total`` lines."""
    return f"c{index}" if total <= NUM_COLOURS else "many"


def padded(values: Sequence[float], floor: float) -> tuple[float, float]:
    """Return a range around ``values`` that starts at ``floor`` or lower."""
    low, high = min(floor, *values), max(floor, *values)
    return low, high + 0.05 * (high - low) if high > low else low + 1.0


def thinned(points: Sequence[Point], most: int = 200) -> list[Point]:
    """Average neighbours until at most ``most`` points are left."""
    if len(points) <= most:
        return list(points)
    return [tuple(np.mean(part, axis=0).tolist()) for part in np.array_split(np.array(points), most)]


def _line(frame: Frame, line: Series) -> list[Markup]:
    marks = [frame.path(line.points, class_=f"line {line.style}")]
    if line.dots and len(line.points) <= MAX_DOTS:
        for x, y in line.points:
            hover = tag("title", f"{line.name}: {y:.4g} at {x:g}")
            marks.append(tag("circle", hover, cx=frame.px(x), cy=frame.py(y), r=2.6, class_=f"dot {line.style}"))
    return marks
