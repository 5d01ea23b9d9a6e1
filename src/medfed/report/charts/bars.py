"""Bars: by round, over the best constant answer, by rank, by share, by client."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from medfed.report.charts.drawing import DASHED, Point, add_tip, draw_box, draw_text, drawing, svg_of, tone
from medfed.report.charts.lines import Series
from medfed.report.text import number

STYLESHEET = Path(__file__).parents[1] / "templates" / "style.css"


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


def stacked_bars(layers: Sequence[Series], x_label: str, what: str) -> Markup:
    """Draw one bar per x, its layers on top of each other."""
    with drawing(280, 190) as axes:
        base = {x: 0.0 for layer in layers for x, _ in layer.points}
        for layer in layers:
            for x, value in layer.points:
                (bar,) = axes.bar(x, value, 0.72, base[x], color=tone(layer.style))
                add_tip(bar, f"{layer.name}, {x_label} {x:g}: {value:.4g}")
                base[x] += value
        axes.set(xlim=(min(base) - 0.5, max(base) + 0.5), ylim=(0, max(base.values()) * 1.05 or 1), xlabel=x_label)
        sums = (f"{layer.name} {sum(value for _, value in layer.points):.4g} in all" for layer in layers)
        return svg_of(axes, f"{what} by {x_label}", "; ".join(sums))


def gain_bars(bars: Sequence[Bar], level: float, limits: Point, what: str) -> Markup:
    """Draw bars from ``level``, what the best constant answer reaches, so that a length is what was gained or lost.

    A value outside ``limits`` is cut at the edge.
    """
    with drawing(280, 150, (34, 6, 8, 8)) as axes:
        axes.set(xlim=(-0.5, max(len(bars), 1) - 0.5), ylim=limits, xticks=[])
        for place, bar in enumerate(bars):
            if bar.value is None:
                continue
            height = np.clip(bar.value, *limits) - level
            (box,) = axes.bar(place, height, 0.78, level, color=tone(bar.style), alpha=0.45)
            add_tip(box, str(bar))
            if bar.ci_low is not None and bar.ci_high is not None:
                whisker = np.clip((bar.ci_low, bar.ci_high), *limits)
                axes.plot((place, place), whisker, color=tone(bar.style), lw=2.2)
            for index, seed in enumerate(np.clip(bar.seeds, *limits) if len(bar.seeds) > 1 else ()):
                x = place + 0.25 * (2 * index / (len(bar.seeds) - 1) - 1)
                axes.plot(x, seed, "o", ms=3.8, mfc=tone("page"), mec=tone(bar.style), zorder=3)
        axes.plot(axes.get_xlim(), (level, level), **DASHED)
        ends = f"Axis from {limits[0]:g} to {limits[1]:g}, best constant answer {number(level)}. "
        return svg_of(axes, what, ends + "; ".join(map(str, bars)))


def rank_diagram(ranks: Mapping[str, float], critical: float, groups: Sequence[Sequence[str]]) -> Markup:
    """Draw the critical-difference diagram of Demšar 2006, Figure 1: average ranks, 1 is best, best first.

    Smaller differences than ``critical`` are not significant; a bar joins each group of algorithms that do not differ.
    """
    count, top, line, start, end = len(ranks), 52.0, 18.0, 150.0, 490.0
    half, foot = (count + 1) // 2, top + 12.0 * len(groups) + 10
    quiet: dict[str, Any] = {"color": tone("soft"), "lw": 1}

    def x(rank: float) -> float:
        return start + (rank - 1) / max(count - 1, 1) * (end - start)

    with drawing(640, foot + line * half + 14, None) as axes:
        axes.plot((x(1), x(count)), (top, top), **quiet)
        for place in range(1, count + 1):
            axes.plot((x(place), x(place)), (top - 4, top + 4), **quiet)
            draw_text(axes, x(place), top - 8, str(place), "center")
        axes.plot((x(1), x(1 + critical)), (18, 18), **quiet)
        draw_text(axes, x(1), 12, f"critical difference {critical:.2f}", "left")
        for index, group in enumerate(groups, start=1):
            ends = [x(ranks[name]) for name in group]
            axes.plot((min(ends) - 3, max(ends) + 3), (top + 12 * index,) * 2, color=tone("ink"), lw=4)
        for index, (name, rank) in enumerate(ranks.items()):
            left = index < half
            y = foot + line * (index if left else count - 1 - index) + 8
            edge = start - 8 if left else end + 8
            axes.plot((x(rank), x(rank), edge), (top, y, y), **quiet)
            draw_text(
                axes, edge - 5 if left else edge + 5, y + 4, f"{name} {rank:.2f}", "right" if left else "left", "ink"
            )
        return svg_of(axes, "Average ranks, 1 is best", "; ".join(f"{name} {rank:.2f}" for name, rank in ranks.items()))


def share_bars(rows: Sequence[tuple[str, float, str]], top: float, what: str) -> Markup:
    """Draw a horizontal bar per row (name, value, printed value), as long as the chart is wide at ``top``."""
    left, room, row, longest = 96.0, 172.0, 20.0, 14
    with drawing(320, max(len(rows), 1) * row, None) as axes:
        for place, (name, value, text) in enumerate(rows):
            y, width = place * row, max(room * value / top, 1.0)
            short = name if len(name) <= longest else f"{name[: longest - 1]}…"
            add_tip(draw_text(axes, left - 8, y + 14, short, "right", "ink"), name)
            draw_box(axes, (left, y + 4), (room, row - 8), "grid")
            style = "fedkim" if value == max(row[1] for row in rows) else "faint"
            add_tip(draw_box(axes, (left, y + 4), (width, row - 8), style), f"{name}: {value:.4f}")
            draw_text(axes, left + room + 8, y + 14, text, "left", "ink")
        return svg_of(axes, what, "; ".join(f"{name} {text}" for name, _, text in rows), "bars")


def partition_chart(headline: str, held: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """Return an SVG file of the examples by title of the task, client and class.

    A task has a row of stacked bars, a client a bar and a class a colour.
    """
    row, bar, left, wide, top = 96.0, 64.0, 150.0, 760.0, 40.0
    with drawing(wide, top + row * len(held) + 12, None) as axes:
        draw_box(axes, (0, 0), (wide, top + row * len(held) + 12), "card")
        draw_text(axes, 16, 24, headline, "left", "ink", fontsize=15, fontweight="bold")
        for place, (title, clients) in enumerate(held.items()):
            head = top + row * place
            draw_text(axes, 16, head + 24, title[:24], "left", "ink", fontweight="bold")
            classes = list(dict.fromkeys(name for counts in clients.values() for name in counts))
            for index, name in enumerate(classes[:4]):
                draw_box(axes, (16, head + 32 + 12 * index), (8, 8), f"c{index % 7}")
                draw_text(axes, 28, head + 40 + 12 * index, name[:20], "left", "ink", fontsize=9)
            largest = max((sum(counts.values()) for counts in clients.values()), default=0) or 1
            width = (wide - left - 16) / max(len(clients), 1)
            for column, (client, counts) in enumerate(clients.items()):
                level, x = head + bar + 12, left + column * width
                if len(clients) <= 16:
                    draw_text(axes, x + width / 2, level + 11, client[:12], "center", fontsize=9)
                for index, name in enumerate(classes):
                    height = counts.get(name, 0) / largest * bar
                    level -= height
                    box = draw_box(axes, (x + width * 0.12, level), (width * 0.76, height), f"c{index % 7}")
                    add_tip(box, f"{client}: {name} {counts.get(name, 0)}")
                draw_text(axes, x + width / 2, level - 3, str(sum(counts.values())), "center", fontsize=9)
        picture = svg_of(axes, headline)
    light = dict(re.findall(r"--([\w-]+): light-dark\((#\w{6}),", STYLESHEET.read_text(encoding="utf-8")))
    text = re.sub(r"var\(--([\w-]+)\)", lambda match: str(light[match[1]]), picture)
    return text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" ', 1)
