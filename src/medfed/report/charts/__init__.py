"""Charts as inline SVG, drawn by matplotlib without pyplot: the same numbers give the same bytes.

A colour is the name of a CSS variable of ``style.css``, so one chart serves light and dark. A chart carries no id, so
any number of them stand on one page. Text stays text. ``title`` and ``desc`` say in words what a chart shows.
"""

from __future__ import annotations

from medfed.report.charts.bars import (
    STYLESHEET,
    Bar,
    gain_bars,
    partition_chart,
    rank_diagram,
    share_bars,
    stacked_bars,
)
from medfed.report.charts.drawing import NUM_COLOURS, TONES, Point, colour, tone
from medfed.report.charts.lines import Series, line_chart, line_picture, reliability_chart, trace_picture
from medfed.report.charts.tasks import LEAST_AXES, Polygon, radar_chart, strip

__all__ = [
    "LEAST_AXES",
    "NUM_COLOURS",
    "STYLESHEET",
    "TONES",
    "Bar",
    "Point",
    "Polygon",
    "Series",
    "colour",
    "gain_bars",
    "line_chart",
    "line_picture",
    "partition_chart",
    "radar_chart",
    "rank_diagram",
    "reliability_chart",
    "share_bars",
    "stacked_bars",
    "strip",
    "tone",
    "trace_picture",
]
