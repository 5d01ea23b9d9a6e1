"""Who holds what: the picture and table of a partition, the command that writes them, and the pages of a benchmark."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from medfed.records.schema import LeaderboardFile, PartitionFile
from medfed.report.federation import partition_picture, partition_rows
from sections import benchmark

RECORD = PartitionFile(
    scheme="dirichlet",
    seed=3,
    hash="abc",
    left_out=("tiny",),
    counts={"client-10": {"t": {"No": 5, "Yes": 0}}, "client-2": {"t": {"No": 1, "Yes": 9}}},
)
SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_has_a_bar_per_client_and_class_as_high_as_its_count() -> None:
    root = ET.fromstring(partition_picture(RECORD, {"t": "A <title>"}))  # noqa: S314 (made above)
    bars = {}
    for group in root.iter(f"{SVG}g"):
        heights = [float(y) for y in re.findall(r"[ML] -?[\d.]+ (-?[\d.]+)", group[1].attrib.get("d", ""))]
        bars[group[0].text] = max(heights) - min(heights)
    assert bars["client-2: Yes 9"] == pytest.approx(9 * bars["client-2: No 1"], rel=1e-2)
    assert bars["client-10: No 5"] == pytest.approx(5 * bars["client-2: No 1"], rel=1e-2)
    words = " ".join(text.text or "" for text in root.iter(f"{SVG}text"))
    assert "dirichlet partition, 2 clients, 1 too small left out, seed 3, hash abc" in words
    assert "A <title>" in words


def test_the_table_lists_clients_in_natural_order() -> None:
    assert partition_rows(RECORD) == [("client-2", "t", 10, "No 1, Yes 9"), ("client-10", "t", 5, "No 5")]


def test_pages_print_blocks_ranks_bounds_and_costs() -> None:
    entry = {"worst_client": 0.4, "seeds": {"0": 0.8}, "intervals": [[0.7, 0.9]]}
    cost = {"bytes_up": 10, "bytes_down": 2000, "train_seconds": 3.0, "peak_memory_bytes": 5e8}
    block = {"name": ["X", "IID"], "task": "x", "metric": "dice", "title": "Dice", "n": 7}
    block["values"] = {"A": entry | {"mean": 0.8, "cost": cost}, "B": entry | {"mean": None}}
    block["bounds"] = {"local": {"mean": 0.5, "std": 0.1}, "always-no": {"mean": 0.2, "std": None}}
    ranks = {"A": {"mean": 1.0}, "B": {"mean": 2.0}}
    facts = {"algorithms": ["A", "B"], "blocks": [block], "ranks": ranks, "num_blocks": 1}
    board = LeaderboardFile.model_validate(facts | {"critical_difference": 1.96})
    assert "| X · IID | Dice | 7 | 0.800 | – | 0.500 ± 0.100 | 0.200 |" in benchmark.blocks(board)
    assert "| A | 1.00 | 10 B | 2.0 kB | 3.0 s | 500.0 MB |" in benchmark.costs(board)
    assert "| X · IID | Dice | 7 | 0.800 [0.70, 0.90] | – |" in benchmark.plain(board)
