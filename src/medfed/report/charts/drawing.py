"""A chart's axes, marks and colours, and its SVG."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from markupsafe import Markup
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

TONES = ["ink", "soft", "rule", "grid", "page", "card", "paper", "fedkim", "federated", "other", "constant", "faint"]
TONES += ["many", "c0", "c1", "c2", "c3", "c4", "c5", "c6"]
"""CSS variables that a chart may use as a colour."""
NUM_COLOURS, MAX_DOTS = 6, 30
"""More lines than these are drawn alike; a line of more points has no dots."""
SVG, XLINK, TIP = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}", "tip:"
KEPT = ("d", "x", "y", "transform")
"""Attributes of shapes and text that a page needs; their style becomes attributes, which need no inline style."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""Characters that XML forbids."""
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


def colour(index: int, total: int) -> str:
    """CSS class of the index-th of ``total`` lines."""
    return f"c{index}" if total <= NUM_COLOURS else "many"


@contextmanager
def drawing(
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


def draw_dot(axes: Axes, point: Point, style: str, tip: str, size: float = 5.2) -> None:
    """Mark a point; the federated-only model's dots are open, so that two models differ without colour."""
    face, edge = ("card", 1.5) if style == "federated" else (style, 0)
    (dot,) = axes.plot(*point, "o", ms=size, mfc=tone(face), mec=tone(style), mew=edge, zorder=3)
    add_tip(dot, tip)


def draw_box(axes: Axes, corner: Point, size: Point, style: str, alpha: float = 1.0) -> Artist:
    """Draw a filled box; ``corner`` and ``size`` are in user units."""
    return axes.add_patch(Rectangle(corner, *size, fc=tone(style), alpha=alpha, lw=0))


def draw_text(axes: Axes, x: float, y: float, text: str, align: str, style: str = "soft", **font: Any) -> Artist:
    """Write ``text`` at a point, to its left, to its right or around it."""
    return axes.text(x, y, text, ha=align, color=tone(style), **font)


def add_tip(artist: Artist, text: str) -> None:
    """Print ``text`` where the pointer rests on ``artist``."""
    artist.set_gid(f"{TIP}{text}")


def svg_of(axes: Axes, title: str, values: str = "", style: str = "") -> Markup:
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
