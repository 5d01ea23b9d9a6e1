"""Charts print what the numbers are: places, clamps, gaps, words; the same bytes each time; no id; colours by name."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest
from matplotlib import rc_context, rcParams

from medfed.report.charts import (
    STYLESHEET,
    TONES,
    Bar,
    Polygon,
    Series,
    gain_bars,
    line_chart,
    line_picture,
    partition_chart,
    radar_chart,
    rank_diagram,
    reliability_chart,
    share_bars,
    stacked_bars,
    strip,
    trace_picture,
)

TASKS = ["north", "east", "south", "west"]
LINES = [Series("m", "fedkim", [(1, 0.5), (2, 0.75)]), Series("<b>&", "federated", [(1, 0.6), (2, 0.4)])]
CHARTS: dict[str, Callable[[], str]] = {
    "lines": lambda: line_chart(LINES, "round", "AUROC", (0.4, 1.0), 0.5),
    "point": lambda: line_chart([Series("m", "c0", [(3, 0.0)])], "round", "AUROC"),
    "reliability": lambda: reliability_chart([("m", "fedkim", [(0.1, 0.2, 10), (0.9, 1.0, 30)])], "COVID-19"),
    "stack": lambda: stacked_bars([Series("up", "c0", [(1, 2.0)]), Series("down", "c1", [(1, 3.0)])], "round", "MB"),
    "gains": lambda: gain_bars([Bar("up", "c0", 0.8, 0.7, 0.9, [0.75, 0.85])], 0.5, (0.0, 1.0), "AUROC"),
    "radar": lambda: radar_chart(TASKS, (0.25, 1.0), [Polygon("m", "fedkim", [1.0, None, 0.1, 0.25])], "AUROC"),
    "strip": lambda: strip([(1, [0.5, 0.5], 0.69), (2, [1.0, 0.0], 0.0)], "COVID-19", 1.0),
    "trace": lambda: trace_picture("ECG", [0.0, 1.2, None, -0.3, 0.1], 5.0, "mV"),
    "hours": lambda: line_picture("hr", [80.0, None, 82.0]),
    "ranks": lambda: rank_diagram({"A": 1.2, "B": 1.8}, 0.9, [["A", "B"]]),
    "shares": lambda: share_bars([("$Yes$", 0.9, "0.90"), ("\x07 No", 0.1, "0.10")], 1.0, "Probability"),
    "partition": lambda: partition_chart("iid, 1 client", {"A": {"client-1": {"No": 1, "Yes": 2}}}),
}


def shapes(chart: str, colour: str) -> list[list[tuple[float, float]]]:
    """The corners of every path in ``colour``."""
    paths = [path.attrib for path in ET.fromstring(chart).iter("path")]  # noqa: S314 (made above)
    lines = [path["d"] for path in paths if f"var(--{colour})" in (path.get("fill"), path.get("stroke"))]
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", line)] for line in lines]


def rectangle(corners: list[tuple[float, float]]) -> tuple[float, float]:
    """The upper and the lower edge."""
    return min(y for _, y in corners), max(y for _, y in corners)


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_reproducible_and_can_stand_on_a_page_with_others(name: str) -> None:
    chart = CHARTS[name]()
    assert chart == CHARTS[name]()
    root = ET.fromstring(chart)  # noqa: S314 (made above)
    local = [part.tag.rpartition("}")[2] for part in root.iter()]
    assert local[1] == "title"
    assert root[0].text
    for part in [*root.iter()][1:]:
        assert not {"id", "clip-path", "href", "style", "font-family"} & {key.rpartition("}")[2] for key in part.attrib}
    assert {"defs", "use", "image", "style", "metadata"}.isdisjoint(local)
    assert "nan" not in chart.lower()
    if name != "partition":
        assert "#" not in chart, "colours are the page's"
        assert set(re.findall(r"var\(--([\w-]+)\)", chart)) <= set(TONES)


def test_every_tone_is_a_variable_of_the_stylesheet() -> None:
    css = STYLESHEET.read_text(encoding="utf-8")
    assert [tone for tone in TONES if f"  --{tone}: " not in css] == []


def test_bytes_do_not_depend_on_the_users_style() -> None:
    plain = CHARTS["lines"]()
    with rc_context({"axes.grid": False, "font.size": 30, "svg.fonttype": "path", "axes.edgecolor": "red"}):
        assert CHARTS["lines"]() == plain
        assert rcParams["font.size"] == 30, "a chart leaves the user's style as it was"


def test_names_stay_text() -> None:
    chart = CHARTS["lines"]()
    assert "&lt;b&gt;&amp;: 0.6 at 1" in chart
    assert "$Yes$" in CHARTS["shares"](), "no mathematics"
    assert "\x07" not in CHARTS["shares"]()


def test_lines_lie_where_their_values_are() -> None:
    (line,) = shapes(CHARTS["lines"](), "fedkim")
    height, foot = 190.0 - 8 - 34, 190.0 - 34
    assert line == [
        (38.0, pytest.approx(foot - height / 6, abs=0.01)),
        (270.0, pytest.approx(foot - height * 0.35 / 0.6, abs=0.01)),
    ]
    assert "m ends at 0.75; &lt;b&gt;&amp; ends at 0.4" in CHARTS["lines"]()


def test_a_radar_places_values_on_their_spokes() -> None:
    print("0.625 is half way from 0.25 to 1; 0.1 lies below the axis, so in the centre; 1 on the rim")
    drawn = radar_chart(TASKS, (0.25, 1.0), [Polygon("m", "fedkim", [1.0, 0.625, 0.1, 0.25])], "AUROC")
    outline = next(path for path in shapes(drawn, "fedkim") if len(path) == 5)
    x, y, radius = 245.0, 175.0, 118.0
    expected = [(x, y - radius), (x + radius / 2, y), (x, y), (x, y), (x, y - radius)]
    assert outline == [pytest.approx(place, abs=0.02) for place in expected]
    assert drawn.count(">0.25 to 1<") == 4
    gaps = CHARTS["radar"]()
    assert "m: north 1.000, east –, south 0.100, west 0.250" in gaps
    assert "m, south: 0.100" in gaps
    assert "m, east" not in gaps


def test_bars_stand_on_the_constant_answer() -> None:
    bars = [Bar("up", "c0", 0.8, 0.7, 0.9, [0.75, 0.85]), Bar("down", "c2", 0.4), Bar("no", "c3", None)]
    chart = gain_bars(bars, 0.5, (0.0, 1.0), "AUROC")
    up, down = (next(path for path in shapes(chart, colour) if len(path) > 2) for colour in ("c0", "c2"))
    (level,) = shapes(chart, "constant")
    height = 150.0 - 16.0
    assert rectangle(up) == (pytest.approx(8 + 0.2 * height, abs=0.02), pytest.approx(level[0][1], abs=0.02))
    assert rectangle(down) == (pytest.approx(level[0][1], abs=0.02), pytest.approx(8 + 0.6 * height, abs=0.02))
    assert shapes(chart, "c3") == []
    assert chart.count("<circle") == 2
    assert "best constant answer 0.500. up 0.800 [0.70, 0.90]; down 0.400; no –" in chart
    outside = gain_bars([Bar("far", "c0", 1.4, 0.9, 1.9)], 0.5, (0.0, 1.0), "AUROC")
    assert min(y for path in shapes(outside, "c0") for _, y in path) == pytest.approx(8.0, abs=0.02)


def test_a_strip_shades_by_weight_and_draws_entropy_against_ln_p() -> None:
    rounds = ([(1, [0.5, 0.5], 0.6931471805599453), (2, [1.0, 0.0], 0.0)], "COVID-19")
    opacity = re.findall(r'opacity="([\d.]+)"', strip(*rounds, 1.0))
    assert [float(value) for value in opacity] == [0.5, 0.5, 0.04], "1 is not written"
    assert re.findall(r'opacity="([\d.]+)"', strip(*rounds, 0.5)) == ["0.04"]
    grid = sorted(path[0][1] for path in shapes(strip(*rounds, 1.0), "grid"))
    entropy = next(path for path in shapes(strip(*rounds, 1.0), "fedkim") if len(path) == 2)
    print("the entropy falls from ln 2, the upper line, to 0, the lower")
    assert [y for _, y in entropy] == [pytest.approx(level, abs=0.01) for level in grid]
    assert "Heaviest in the last: expert 1 with 1.00" in strip(*rounds, 1.0)


def test_a_trace_keeps_gaps_and_stays_on_its_paper() -> None:
    chart = CHARTS["trace"]()
    (path,) = re.findall(r'<path d="([^"]*)"[^>]* stroke="var\(--ink\)"', chart)
    assert [part.count("L") for part in path.split("M")[1:]] == [1, 1], "two runs of two points"
    heights = [y for line in shapes(chart, "ink") for _, y in line]
    assert 0 <= min(heights) < max(heights) <= 84
    assert len(shapes(chart, "paper")) == 26 + 5
    assert "5 s from −0.30 to 1.20 mV" in chart


def test_a_variable_nobody_measured_has_no_picture() -> None:
    assert line_picture("lact", [None, None]) == ""
    assert line_picture("hr", [None, 80.0, None]).count("<circle") == 1


def test_ranks_are_joined_where_they_do_not_differ() -> None:
    chart = CHARTS["ranks"]()
    (bar,) = shapes(chart, "ink")
    assert [x for x, _ in bar] == [pytest.approx(150 + 0.2 * 340 - 3), pytest.approx(150 + 0.8 * 340 + 3)]
    assert "A 1.20" in chart
    assert "critical difference 0.90" in chart
