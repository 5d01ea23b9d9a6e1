"""Hand-made SVG: escaped elements, round ticks, axes. Colours are CSS classes, so one picture serves light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

LEFT, RIGHT, TOP, BOTTOM = 38.0, 10.0, 8.0, 34.0
"""Margins around the plot, in user units."""


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """Return an element; attribute names lose a trailing ``_`` and turn ``_`` into ``-``; all text is escaped."""
    spelled = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    inside = Markup("").join(escape(child) for child in children)
    start = Markup("").join(Markup(' {}="{}"').format(key, coordinate(value)) for key, value in spelled.items())
    return Markup("<{0}{1}>{2}</{0}>").format(name, start, inside)


def coordinate(value: object) -> object:
    """Round a number to what an eye can see; leave text as it is."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def ticks(low: float, high: float, count: int = 5) -> dict[float, str]:
    """Return about ``count`` round numbers within [low, high], 1, 2 or 5 powers of ten apart, and their labels."""
    if high <= low:
        return {low: f"{low:g}"}
    raw = (high - low) / count
    power = math.floor(math.log10(raw))
    step = min((factor * 10.0**power for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return {index * step: f"{index * step:.{decimals}f}".replace("-", "−") for index in range(first, last + 1)}


@dataclass(frozen=True)
class Frame:
    """A plot's size, ranges and axis labels.

    Attributes:
        x, y: data ranges (low, high).
        x_label, y_label: what the axes show, units included.
        width, height: of the whole picture, in user units.
        integer_x: whether ticks between whole numbers make no sense (rounds).
    """

    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str = ""
    width: float = 280.0
    height: float = 190.0
    integer_x: bool = True

    def px(self, value: float) -> float:
        """Horizontal place of ``value``."""
        return LEFT + (value - self.x[0]) / ((self.x[1] - self.x[0]) or 1) * (self.width - LEFT - RIGHT)

    def py(self, value: float) -> float:
        """Vertical place of ``value``."""
        return (
            self.height - BOTTOM - (value - self.y[0]) / ((self.y[1] - self.y[0]) or 1) * (self.height - TOP - BOTTOM)
        )

    def path(self, points: Iterable[tuple[float, float]], **attributes: object) -> Markup:
        """Return a line through data points."""
        data = " ".join(f"{coordinate(self.px(x))},{coordinate(self.py(y))}" for x, y in points)
        return tag("polyline", points=data, **attributes)

    def axes(self) -> Markup:
        """Return grid lines, tick labels and axis labels."""
        base, right = self.height - BOTTOM, self.width - RIGHT
        parts: list[Markup] = []
        for value, label in ticks(*self.y, 4).items():
            y = self.py(value)
            parts.append(tag("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid"))
            parts.append(tag("text", label, x=LEFT - 6, y=y + 3.5, class_="tick end"))
        for value, label in ticks(*self.x).items():
            if not self.integer_x or value == int(value):
                parts.append(tag("text", label, x=self.px(value), y=base + 14, class_="tick middle"))
        parts.append(tag("line", x1=LEFT, x2=right, y1=base, y2=base, class_="axis"))
        parts.append(tag("text", self.x_label, x=(LEFT + right) / 2, y=self.height - 4, class_="label middle"))
        return Markup("").join(parts)

    def svg(self, description: str, *children: str) -> Markup:
        """Return the picture; ``description`` is read to those who do not see it."""
        box = f"0 0 {coordinate(self.width)} {coordinate(self.height)}"
        return tag("svg", self.axes(), *children, viewBox=box, role="img", aria_label=description, class_="chart")
