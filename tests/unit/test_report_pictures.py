"""The report's hand-made pictures say what the numbers say: places, clamps, gaps and words."""

from __future__ import annotations

import re

import pytest
from medfed.report.bars import Bar, bar_chart
from medfed.report.cards import line_picture, trace_picture
from medfed.report.radar import CENTRE, RADIUS, Axis, Polygon, radar_chart
from medfed.report.records import Routing, View
from medfed.report.strips import strip

AXES = [Axis(name, 0.25, 1.0) for name in ("north", "east", "south", "west")]


def points(markup: str, style: str) -> list[tuple[float, float]]:
    found = re.search(rf'points="([^"]*)" class="[^"]*{style}', markup)
    assert found is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_a_radar_places_values_on_their_spokes() -> None:
    print("0.625 is half way from 0.25 to 1; 0.1 lies below the axis, so in the centre; 1 on the rim")
    drawn = points(radar_chart(AXES, [Polygon("m", "fedkim", [1.0, 0.625, 0.1, 0.25])], "AUROC"), "area fedkim")
    x, y = CENTRE
    expected = [(x, y - RADIUS), (x + RADIUS / 2, y), (x, y), (x, y)]
    assert drawn == [pytest.approx(place, abs=0.01) for place in expected]


def test_a_radar_prints_ranges_names_values_and_leaves_gaps() -> None:
    markup = radar_chart(AXES, [Polygon("m", "fedkim", [0.1, None, 0.5, 0.5])], "AUROC")
    assert markup.count("0.25 to 1</tspan>") == 4
    assert "AUROC, axes from 0.25 to 1. m: north 0.100, east –, south 0.500, west 0.500" in markup
    assert "m, north: 0.100" in markup
    assert len(points(markup, "area fedkim")) == 3


def test_bars_stand_on_the_constant_answer() -> None:
    bars = [
        Bar("up", "c0", 0.8, 0.7, 0.9, [0.75, 0.85]),
        Bar("down", "c2", 0.4, None, None),
        Bar("no", "c3", None, None, None),
    ]
    markup = bar_chart(bars, 0.5, (0.0, 1.0), "AUROC")
    boxes = re.findall(r'<rect class="bar pale (c\d)" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', markup)
    line = float(re.findall(r'y1="([\d.]+)" y2="[\d.]+" class="chance"', markup)[0])
    height = 150.0 - 16.0
    (up, top, tall), (down, head, small) = boxes
    assert (up, down) == ("c0", "c2")
    assert float(top) + float(tall) == pytest.approx(line, abs=0.02)
    assert float(head) == pytest.approx(line, abs=0.02)
    assert (float(tall), float(small)) == (pytest.approx(0.3 * height, abs=0.02), pytest.approx(0.1 * height, abs=0.02))
    assert markup.count("whisker") == 1
    assert markup.count('class="seed') == 2
    assert "best constant answer 0.500. up 0.800 [0.70, 0.90]; down 0.400; no –" in markup


def test_a_strip_shades_by_weight_and_draws_entropy_against_ln_p() -> None:
    rounds = [
        Routing(round=1, alpha={"cd": [0.5, 0.5]}, entropy={"cd": 0.6931471805599453}),
        Routing(round=2, alpha={"cd": [1.0, 0.0]}, entropy={"cd": 0.0}),
    ]
    markup = strip(rounds, "cd", "COVID-19", 1.0)
    half = strip(rounds, "cd", "COVID-19", 0.5)
    assert re.findall(r'fill-opacity="([\d.]+)"', half) == ["1", "1", "1", "0.04"]
    opacity = [float(value) for value in re.findall(r'fill-opacity="([\d.]+)"', markup)]
    assert opacity == [0.5, 0.5, 1.0, 0.04]
    grid = sorted(float(value) for value in re.findall(r'y1="([\d.]+)" y2="[\d.]+" class="grid"', markup))
    (_, first), (_, last) = points(markup, "line fedkim")
    print("the entropy falls from ln 2, the upper line, to 0, the lower")
    assert (first, last) == (pytest.approx(grid[0], abs=0.01), pytest.approx(grid[1], abs=0.01))
    assert "heaviest in the last: expert 1 with 1.00" in markup


def test_a_trace_keeps_gaps_and_stays_on_its_paper() -> None:
    view = View(kind="trace", title="ECG", unit="mV", seconds=5, values=[0.0, 1.2, None, -0.3, 0.1])
    markup = trace_picture(view)
    runs = re.findall(r'points="([^"]*)" class="pulse"', markup)
    assert [len(run.split()) for run in runs] == [2, 2]
    heights = [float(place.split(",")[1]) for run in runs for place in run.split()]
    assert 0 <= min(heights) < max(heights) <= 84
    assert markup.count('class="paper"') == 26 + 5
    assert "5 s from −0.30 to 1.20 mV" in markup


def test_a_variable_nobody_measured_has_no_picture() -> None:
    assert line_picture(View(kind="line", title="lact", values=[None, None])) == ""
    assert line_picture(View(kind="line", title="hr", values=[None, 80.0, None])).count("<circle") == 1
