"""Charts as inline SVG, drawn by matplotlib without pyplot: the same numbers give the same bytes.

A colour is the name of a CSS variable of ``style.css``, so one chart serves light and dark. A chart carries no id, so
any number of them stand on one page. Text stays text. ``title`` and ``desc`` say in words what a chart shows.
"""

from __future__ import annotations

import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple, cast

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from medfed.report.text import number

TONES = ["ink", "soft", "rule", "grid", "page", "card", "paper", "fedkim", "federated", "other", "constant", "faint"]
TONES += ["many", "c0", "c1", "c2", "c3", "c4", "c5", "c6"]
"""CSS variables that a chart may use as a colour."""
NUM_COLOURS, MAX_DOTS = 6, 30
"""More lines than these are drawn alike; a line of more points has no dots."""
LEAST_AXES, RING = 3, 0.25
"""A radar of fewer axes has no area; its rings are so far apart, as all metrics on radars are fractions."""
FAINTEST = 0.04
"""Opacity of a weight of zero: its cell stays visible."""
BOX_SECONDS, BOX_MILLIVOLTS = 0.2, 0.5
"""One large box of ECG paper."""
SVG, XLINK, TIP = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}", "tip:"
KEPT = ("d", "x", "y", "transform")
"""Attributes of shapes and text that a page needs; their style becomes attributes, which need no inline style."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""Characters that XML forbids."""
STYLESHEET = Path(__file__).parent / "templates" / "style.css"
Point = tuple[float, float]
PLOT = (38.0, 10.0, 8.0, 34.0)
"""Margins of a plot: left, right, top, bottom in user units."""


def tone(name: str) -> str:
    """Return the colour that stands for the CSS variable ``name`` until the chart is written."""
    return f"#fe00{TONES.index(name):02x}"


STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "medfed", "font.size": 11, "axes.labelpad": 2}
STYLE |= {"axes.grid.axis": "y", "axes.edgecolor": tone("rule"), "grid.color": tone("grid"), "grid.linewidth": 1}
STYLE |= dict.fromkeys(("axes.axisbelow", "axes.grid"), True)
STYLE |= dict.fromkeys(("path.simplify", "text.parse_math"), False)
STYLE |= dict.fromkeys(("lines.solid_capstyle", "lines.solid_joinstyle"), "round")
STYLE |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), tone("soft"))
STYLE |= {f"axes.spines.{side}": False for side in ("left", "right", "top")}
STYLE |= {f"{axis}tick.major.{name}": size for axis in "xy" for name, size in (("size", 0), ("pad", 6))}
"""The difference from matplotlib's defaults."""
DASHED: dict[str, Any] = {"color": tone("constant"), "lw": 1.2, "ls": (0, (3, 3))}


class Series(NamedTuple):
    """One line: its name, its colour, its points by x."""

    name: str
    style: str
    points: Sequence[Point]
    dots: bool = True


class Bar(NamedTuple):
    """One bar: its value, its interval and the values of its seeds."""

    name: str
    style: str
    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    seeds: Sequence[float] = ()

    def __str__(self) -> str:
        ends = "" if self.ci_low is None else f" [{number(self.ci_low, 2)}, {number(self.ci_high, 2)}]"
        return f"{self.name} {number(self.value)}{ends}"


class Polygon(NamedTuple):
    """One model of a radar: a value per axis; None where it has none."""

    name: str
    style: str
    values: Sequence[float | None]


def line_chart(
    series: Sequence[Series], x_label: str, what: str, y: Point | None = None, reference: float | None = None
) -> Markup:
    """Draw lines over rounds or steps; ``y`` is the axis' range and ``reference`` a dashed level."""
    xs, ys = zip(*(point for line in series for point in line.points), strict=True)
    low, high = y or (min(0.0, *ys), max(0.0, *ys))
    if y is None:
        high = high + 0.05 * (high - low) if high > low else low + 1.0
    with _drawing(280, 190) as axes:
        margin = 0.0 if max(xs) > min(xs) else 0.5
        axes.set(xlim=(min(xs) - margin, max(xs) + margin), ylim=(low, high), xlabel=x_label)
        if reference is not None and low <= reference <= high:
            axes.plot(axes.get_xlim(), (reference, reference), **DASHED)
        for line in series:
            axes.plot(*zip(*line.points, strict=True), color=tone(line.style), lw=2)
            for x, value in line.points if line.dots and len(line.points) <= MAX_DOTS else ():
                _dot(axes, (x, value), line.style, f"{line.name}: {value:.4g} at {x:g}")
        ends = "; ".join(f"{line.name} ends at {line.points[-1][1]:.3g}" for line in series)
        return _svg(axes, f"{what} by {x_label}", ends)


def reliability_chart(curves: Sequence[tuple[str, str, Sequence[tuple[float, float, int]]]], what: str) -> Markup:
    """Draw observed frequency over predicted probability.

    A curve is a name, a colour and points (predicted, observed, number of examples). A dot's area is its share.
    """
    with _drawing(280, 230) as axes:
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability")
        axes.locator_params("x", integer=False)
        axes.plot((0, 1), (0, 1), **DASHED)
        for name, style, points in curves:
            axes.plot([x for x, *_ in points], [y for _, y, _ in points], color=tone(style), lw=1.2, alpha=0.55)
            total = sum(count for *_, count in points) or 1
            for x, y, count in points:
                size = 4.0 + 14.0 * math.sqrt(count / total)
                (dot,) = axes.plot(x, y, "o", ms=size, mfc=tone(style), mew=0, alpha=0.4)
                _tip(dot, f"{name}: predicted {x:.2f}, observed {y:.2f}, n {count}")
        return _svg(axes, f"{what}: observed frequency against predicted probability")


def stacked_bars(layers: Sequence[Series], x_label: str, what: str) -> Markup:
    """Draw one bar per x, its layers on top of each other."""
    with _drawing(280, 190) as axes:
        base = {x: 0.0 for layer in layers for x, _ in layer.points}
        for layer in layers:
            for x, value in layer.points:
                (bar,) = axes.bar(x, value, 0.72, base[x], color=tone(layer.style))
                _tip(bar, f"{layer.name}, {x_label} {x:g}: {value:.4g}")
                base[x] += value
        axes.set(xlim=(min(base) - 0.5, max(base) + 0.5), ylim=(0, max(base.values()) * 1.05 or 1), xlabel=x_label)
        sums = (f"{layer.name} {sum(value for _, value in layer.points):.4g} in all" for layer in layers)
        return _svg(axes, f"{what} by {x_label}", "; ".join(sums))


def gain_bars(bars: Sequence[Bar], level: float, limits: Point, what: str) -> Markup:
    """Draw bars from ``level``, what the best constant answer reaches, so that a length is what was gained or lost.

    A value outside ``limits`` is cut at the edge.
    """
    with _drawing(280, 150, (34, 6, 8, 8)) as axes:
        axes.set(xlim=(-0.5, max(len(bars), 1) - 0.5), ylim=limits, xticks=[])
        for place, bar in enumerate(bars):
            if bar.value is None:
                continue
            height = np.clip(bar.value, *limits) - level
            (box,) = axes.bar(place, height, 0.78, level, color=tone(bar.style), alpha=0.45)
            _tip(box, str(bar))
            if bar.ci_low is not None and bar.ci_high is not None:
                whisker = np.clip((bar.ci_low, bar.ci_high), *limits)
                axes.plot((place, place), whisker, color=tone(bar.style), lw=2.2)
            for index, seed in enumerate(np.clip(bar.seeds, *limits) if len(bar.seeds) > 1 else ()):
                x = place + 0.25 * (2 * index / (len(bar.seeds) - 1) - 1)
                axes.plot(x, seed, "o", ms=3.8, mfc=tone("page"), mec=tone(bar.style), zorder=3)
        axes.plot(axes.get_xlim(), (level, level), **DASHED)
        ends = f"Axis from {limits[0]:g} to {limits[1]:g}, best constant answer {number(level)}. "
        return _svg(axes, what, ends + "; ".join(map(str, bars)))


def radar_chart(titles: Sequence[str], limits: Point, polygons: Sequence[Polygon], what: str) -> Markup:
    """Draw polygons over one axis per task, as Figure 2 of the FedKIM paper does.

    Deviation: the paper's axes have no printed range. Here ``limits`` are printed at every axis; a value below them is
    drawn in the centre, and its tip has the number.
    """
    low, high = limits
    angles = [2 * math.pi * index / len(titles) for index in range(len(titles))]
    with _drawing(490, 350, (127, 127, 57, 57), polar=True) as axes:
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
                _dot(axes, corner, polygon.style, f"{polygon.name}, {title}: {number(value)}")
        lines = [", ".join(f"{t} {number(v)}" for t, v in zip(titles, p.values, strict=True)) for p in polygons]
        values = "; ".join(f"{p.name}: {line}" for p, line in zip(polygons, lines, strict=True))
        return _svg(axes, f"{what}, axes from {low:g} to {high:g}", values, "radar")


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
    with _drawing(wide, bottom + foot, None) as axes:
        for column, (name, shares, _) in enumerate(lines):
            for place, weight in enumerate(shares):
                corner = (left + column * width + 0.5, head + place * row + 0.5)
                box = _box(axes, corner, (width - 1, row - 1), "fedkim", max(min(weight / top, 1.0), FAINTEST))
                _tip(box, f"round {name}, expert {place + 1}: {number(weight)}")
        for column in sorted({0, len(rounds) - 1}):
            _text(axes, left + (column + 0.5) * width, head - 5, str(rounds[column]), "center")
        _text(axes, (left + wide) / 2, head - 5, "round", "center")
        for place in sorted({0, max(experts - 1, 0)}):
            _text(axes, left - 6, head + (place + 0.5) * row + 4, str(place + 1), "right")
        for y, label in ((low, "0"), (high, "ln P")):
            axes.plot((left, wide), (y, y), color=tone("grid"), lw=1)
            _text(axes, left - 6, y + 4, label, "right")
        most = math.log(max(experts, 2))
        known = [(column, value) for column, value in enumerate(entropy) if value is not None]
        points = [(left + (column + 0.5) * width, low - (low - high) * value / most) for column, value in known]
        axes.plot([x for x, _ in points], [y for _, y in points], color=tone("fedkim"), lw=2)
        for point, (column, value) in zip(points, known, strict=True):
            _dot(axes, point, "fedkim", f"round {rounds[column]}: {number(value, 2)}", 4.8)
        heaviest = ""
        if last := weights[-1]:
            heaviest = f"Heaviest in the last: expert {last.index(max(last)) + 1} with {number(max(last), 2)}"
        return _svg(axes, f"{what}: weights of {experts} experts over {len(rounds)} rounds", heaviest)


def trace_picture(title: str, values: Sequence[float | None], seconds: float, unit: str) -> Markup:
    """Draw an ECG on its paper; the voltage range is the trace's own, rounded outwards to whole boxes."""
    known = [value for value in values if value is not None] or [0.0]
    low, high = int(min(0.0, *known) / BOX_MILLIVOLTS - 1), int(max(0.0, *known) / BOX_MILLIVOLTS + 1)
    boxes = round(seconds / BOX_SECONDS) or 1
    with _drawing(300, 84, (0, 0, 0, 0)) as axes:
        axes.set(xlim=(0, boxes), ylim=(low * BOX_MILLIVOLTS, high * BOX_MILLIVOLTS))
        axes.vlines(range(boxes + 1), *axes.get_ylim(), color=tone("paper"), lw=0.6)
        axes.hlines(BOX_MILLIVOLTS * np.arange(low, high + 1), 0, boxes, color=tone("paper"), lw=0.6)
        places = [boxes * index / max(len(values) - 1, 1) for index in range(len(values))]
        axes.plot(places, np.array(values, float), color=tone("ink"), lw=1.1)
        axes.set_axis_off()
        span = f"{seconds:g} s from {number(min(known), 2)} to {number(max(known), 2)} {unit}"
        return _svg(axes, title, span, "trace")


def line_picture(title: str, values: Sequence[float | None]) -> Markup:
    """Draw one variable by the hour: a dot per measurement, a line through consecutive ones; nothing if none."""
    known = [value for value in values if value is not None]
    if not known:
        return Markup()
    with _drawing(240, 24, (3, 3, 4, 4)) as axes:
        axes.plot(np.array(values, float), "o-", color=tone("ink"), lw=1.1, ms=3, mew=0)
        spread = 0.5 * (max(known) == min(known))
        axes.set(xlim=(0, max(len(values) - 1, 1)), ylim=(min(known) - spread, max(known) + spread))
        axes.set_axis_off()
        span = f"{len(known)} of {len(values)} hours measured, from {min(known):g} to {max(known):g}"
        return _svg(axes, f"{title} by hour", span)


def rank_diagram(ranks: Mapping[str, float], critical: float, groups: Sequence[Sequence[str]]) -> Markup:
    """Draw the critical-difference diagram of Demšar 2006, Figure 1: average ranks, 1 is best, best first.

    Smaller differences than ``critical`` are not significant; a bar joins each group of algorithms that do not differ.
    """
    count, top, line, start, end = len(ranks), 52.0, 18.0, 150.0, 490.0
    half, foot = (count + 1) // 2, top + 12.0 * len(groups) + 10
    quiet: dict[str, Any] = {"color": tone("soft"), "lw": 1}

    def x(rank: float) -> float:
        return start + (rank - 1) / max(count - 1, 1) * (end - start)

    with _drawing(640, foot + line * half + 14, None) as axes:
        axes.plot((x(1), x(count)), (top, top), **quiet)
        for place in range(1, count + 1):
            axes.plot((x(place), x(place)), (top - 4, top + 4), **quiet)
            _text(axes, x(place), top - 8, str(place), "center")
        axes.plot((x(1), x(1 + critical)), (18, 18), **quiet)
        _text(axes, x(1), 12, f"critical difference {critical:.2f}", "left")
        for index, group in enumerate(groups, start=1):
            ends = [x(ranks[name]) for name in group]
            axes.plot((min(ends) - 3, max(ends) + 3), (top + 12 * index,) * 2, color=tone("ink"), lw=4)
        for index, (name, rank) in enumerate(ranks.items()):
            left = index < half
            y = foot + line * (index if left else count - 1 - index) + 8
            edge = start - 8 if left else end + 8
            axes.plot((x(rank), x(rank), edge), (top, y, y), **quiet)
            _text(axes, edge - 5 if left else edge + 5, y + 4, f"{name} {rank:.2f}", "right" if left else "left", "ink")
        return _svg(axes, "Average ranks, 1 is best", "; ".join(f"{name} {rank:.2f}" for name, rank in ranks.items()))


def share_bars(rows: Sequence[tuple[str, float, str]], top: float, what: str) -> Markup:
    """Draw a horizontal bar per row (name, value, printed value), as long as the chart is wide at ``top``."""
    left, room, row, longest = 96.0, 172.0, 20.0, 14
    with _drawing(320, max(len(rows), 1) * row, None) as axes:
        for place, (name, value, text) in enumerate(rows):
            y, width = place * row, max(room * value / top, 1.0)
            short = name if len(name) <= longest else f"{name[: longest - 1]}…"
            _tip(_text(axes, left - 8, y + 14, short, "right", "ink"), name)
            _box(axes, (left, y + 4), (room, row - 8), "grid")
            style = "fedkim" if value == max(row[1] for row in rows) else "faint"
            _tip(_box(axes, (left, y + 4), (width, row - 8), style), f"{name}: {value:.4f}")
            _text(axes, left + room + 8, y + 14, text, "left", "ink")
        return _svg(axes, what, "; ".join(f"{name} {text}" for name, _, text in rows), "bars")


def partition_chart(headline: str, held: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """Return an SVG file of the examples by title of the task, client and class.

    A task has a row of stacked bars, a client a bar and a class a colour.
    """
    row, bar, left, wide, top = 96.0, 64.0, 150.0, 760.0, 40.0
    with _drawing(wide, top + row * len(held) + 12, None) as axes:
        _box(axes, (0, 0), (wide, top + row * len(held) + 12), "card")
        _text(axes, 16, 24, headline, "left", "ink", fontsize=15, fontweight="bold")
        for place, (title, clients) in enumerate(held.items()):
            head = top + row * place
            _text(axes, 16, head + 24, title[:24], "left", "ink", fontweight="bold")
            classes = list(dict.fromkeys(name for counts in clients.values() for name in counts))
            for index, name in enumerate(classes[:4]):
                _box(axes, (16, head + 32 + 12 * index), (8, 8), f"c{index % 7}")
                _text(axes, 28, head + 40 + 12 * index, name[:20], "left", "ink", fontsize=9)
            largest = max((sum(counts.values()) for counts in clients.values()), default=0) or 1
            width = (wide - left - 16) / max(len(clients), 1)
            for column, (client, counts) in enumerate(clients.items()):
                level, x = head + bar + 12, left + column * width
                if len(clients) <= 16:
                    _text(axes, x + width / 2, level + 11, client[:12], "center", fontsize=9)
                for index, name in enumerate(classes):
                    height = counts.get(name, 0) / largest * bar
                    level -= height
                    box = _box(axes, (x + width * 0.12, level), (width * 0.76, height), f"c{index % 7}")
                    _tip(box, f"{client}: {name} {counts.get(name, 0)}")
                _text(axes, x + width / 2, level - 3, str(sum(counts.values())), "center", fontsize=9)
        picture = _svg(axes, headline)
    light = dict(re.findall(r"--([\w-]+): light-dark\((#\w{6}),", STYLESHEET.read_text(encoding="utf-8")))
    text = re.sub(r"var\(--([\w-]+)\)", lambda match: str(light[match[1]]), picture)
    return text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" ', 1)


def colour(index: int, total: int) -> str:
    """CSS class of the index-th of ``total`` lines."""
    return f"c{index}" if total <= NUM_COLOURS else "many"


@contextmanager
def _drawing(
    width: float, height: float, margins: tuple[float, ...] | None = PLOT, *, polar: bool = False
) -> Iterator[Axes]:
    """Give the axes of a new chart; sizes are in user units, of which a point of matplotlib's is one.

    ``margins`` None gives plain user units: x to the right, y downwards.
    """
    with rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        rcdefaults()  # whatever the user's matplotlibrc says
        rcParams.update(STYLE)
        left, right, top, bottom = margins or (0.0,) * 4
        box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
        axes = Figure((width / 72, height / 72), frameon=False).add_axes(box, polar=polar)
        axes.patch.set_visible(False)
        if margins is None:
            axes.set(xlim=(0, width), ylim=(height, 0))
            axes.set_axis_off()
        elif not polar:
            axes.locator_params("y", nbins=5, steps=[1, 2, 5, 10])
            axes.locator_params("x", nbins=5, steps=[1, 2, 5, 10], integer=True)
        yield axes


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


def _dot(axes: Axes, point: Point, style: str, tip: str, size: float = 5.2) -> None:
    """Mark a point; the federated-only model's dots are open, so that two models differ without colour."""
    face, edge = ("card", 1.5) if style == "federated" else (style, 0)
    (dot,) = axes.plot(*point, "o", ms=size, mfc=tone(face), mec=tone(style), mew=edge, zorder=3)
    _tip(dot, tip)


def _box(axes: Axes, corner: Point, size: Point, style: str, alpha: float = 1.0) -> Artist:
    return axes.add_patch(Rectangle(corner, *size, fc=tone(style), alpha=alpha, lw=0))


def _text(axes: Axes, x: float, y: float, text: str, align: str, style: str = "soft", **font: Any) -> Artist:
    return axes.text(x, y, text, ha=align, color=tone(style), **font)


def _tip(artist: Artist, text: str) -> None:
    """Print ``text`` where the pointer rests on ``artist``."""
    artist.set_gid(f"{TIP}{text}")


def _svg(axes: Axes, title: str, values: str = "", style: str = "") -> Markup:
    """Write the chart: no id, no clipping, no font; colours are CSS variables in attributes."""
    for artist in axes.findobj(include_self=False):
        artist.set_clip_on(False)
    out, figure = io.StringIO(), cast("Figure", axes.figure)
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawn = ET.fromstring(CONTROL.sub("", out.getvalue()))  # noqa: S314 (written above)
    marks = {part.attrib["id"]: part.attrib["d"] for part in drawn.iter(f"{SVG}path") if "id" in part.attrib}
    root = ET.Element("svg", {"viewBox": drawn.attrib["viewBox"], "role": "img", "class": f"chart {style}".strip()})
    ET.SubElement(root, "title").text = title
    if values:
        ET.SubElement(root, "desc").text = values
    root.extend(part for child in drawn for part in _plain(child, marks))
    text = CONTROL.sub("", ET.tostring(root, "unicode"))
    text = re.sub(r"#fe00([0-9a-f]{2})", lambda match: f"var(--{TONES[int(match[1], 16)]})", text)
    return Markup(text)  # noqa: S704 (ElementTree escaped what names hold)


def _plain(part: ET.Element, marks: Mapping[str, str]) -> Iterator[ET.Element]:
    """Yield ``part`` without what a page cannot hold twice; a group that says nothing gives its children."""
    kind, facts = part.tag.removeprefix(SVG), part.attrib
    if kind in ("defs", "metadata"):
        return
    children = [made for child in part for made in _plain(child, marks)]
    kept = {name: _short(value) for name, value in facts.items() if name in KEPT}
    kept |= dict(rule.split(": ") for rule in _short(facts.get("style", "")).split("; ") if rule)
    kept = {name: value for name, value in kept.items() if not value.startswith("rotate(0 ")}
    if kind == "use":  # of a circle, whose path starts with M 0 radius
        kept["r"] = _short(marks[facts[f"{XLINK}href"][1:]].split()[2])
        yield ET.Element("circle", {{"x": "cx", "y": "cy"}.get(name, name): value for name, value in kept.items()})
    elif kind == "g" and not facts.get("id", "").startswith(TIP):
        yield from children
    else:
        plain = ET.Element(kind, kept)
        plain.text = part.text if kind == "text" else None
        if kind == "g":
            ET.SubElement(plain, "title").text = facts["id"].removeprefix(TIP)
        plain.extend(children)
        yield plain


def _short(text: str) -> str:
    """Drop the font, line breaks and digits that no eye sees."""
    text = re.sub(r"\s*font-family:[^;]*;?", "", " ".join(text.split())).replace("(-0 ", "(0 ")
    return re.sub(r"-?\d+\.\d+", lambda match: f"{round(float(match[0]), 2) + 0.0:g}", text)
