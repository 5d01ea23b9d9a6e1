"""Every interval in the committed pages is one that its metric can have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/results.md")
INTERVAL = re.compile(r"(?<![\d.+−-])(\d\.\d+)\*? \[([+−-]?[\d.]+), ([+−-]?[\d.]+)\]")
"""A value without a sign, so no difference, with its interval."""
BEYOND_ONE = re.compile(r"MCC|HD95|sacreBLEU|−|difference")
"""Columns whose metric is not between 0 and 1, or that hold differences."""


def out_of_range(page: str) -> list[str]:
    """Return the cells whose interval leaves [0, 1], or does not hold its value."""
    found, heads = [], [""]
    for number, line in enumerate(page.splitlines(), start=1):
        cells = line.strip().strip("|").split("|") if line.startswith("|") else []
        if not cells:
            heads = [""]
            continue
        heads = cells if heads == [""] else heads
        for place, cell in enumerate(cells):
            head = heads[min(place, len(heads) - 1)]
            for match in () if BEYOND_ONE.search(head) else INTERVAL.finditer(cell):
                value, low, high = (float(text.replace("−", "-")) for text in match.groups())
                if not (0 <= low <= high <= 1 and low - 0.005 <= value <= high + 0.005):
                    found.append(f"{number}: {match[0]}")
    return found


def test_the_check_sees_a_bound_beyond_one_and_leaves_differences_alone() -> None:
    table = "| task | AUROC | MCC | a − b |\n|---|--:|--:|--:|\n| x | {} | 0.1 [−0.2, 0.3] | 0.1 [−0.2, 0.3] |\n"
    assert out_of_range(table.format("0.967* [0.865, 1.00]")) == []
    assert out_of_range(table.format("0.967 [0.865, 1.023]")) == ["3: 0.967 [0.865, 1.023]"]
    assert out_of_range(table.format("0.100 [−0.01, 0.20]")) == ["3: 0.100 [−0.01, 0.20]"]
    assert out_of_range(table.format("+0.004 [−0.024, +0.029]")) == []
    assert out_of_range(table.format("0.500 [0.60, 0.70]")) == ["3: 0.500 [0.60, 0.70]"]


@pytest.mark.parametrize("name", PAGES)
def test_no_committed_interval_leaves_the_metrics_range(name: str) -> None:
    assert out_of_range((ROOT / name).read_text(encoding="utf-8")) == []
