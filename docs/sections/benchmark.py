"""Sections of the pages from a benchmark's ``leaderboard.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medfed.report.leaderboard import block_row, bounds, conclusion, cost_rows, order
from medfed.report.names import model_title, number
from sections.comparison import table

FILE = "leaderboard.json"
Board = Mapping[str, Any]


def read_board(folder: Path) -> Board | None:
    """Return the leaderboard in ``folder``, or None."""
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def blocks(board: Board) -> str:
    """A line per block: the primary metric of every algorithm and bound, then the average ranks and the verdict."""
    head = ["task · partition", "metric", "n", *order(board), *map(model_title, bounds(board))]
    lines = [
        [" · ".join(block["name"]), block["title"], str(block["n"]), *block_row(block, board)["texts"]]
        for block in board["blocks"]
    ]
    ranks = [number(board["ranks"][name]["mean"], 2) for name in order(board)]
    lines.append(["**average rank**", "", "", *ranks, *[""] * len(bounds(board))])
    return "\n".join([_seeds(board), "", table(head, lines), "", conclusion(board)])


def costs(board: Board) -> str:
    """A line per algorithm: rank, bytes, seconds and memory of a run, on the average over the blocks."""
    head = ["algorithm", "average rank", "sent up", "sent down", "client training", "largest memory"]
    return table(head, [[row["name"], *row["texts"]] for row in cost_rows(board)])


def plain(board: Board) -> str:
    """A line per block without ranks, for boards whose last axis is no algorithm, or with few examples."""
    names = list(board["algorithms"])
    head = ["task", "metric", "n", *names]
    lines = [
        [
            " · ".join(block["name"]),
            block["title"],
            str(block["n"]),
            *(_with_interval(block["values"][name]) for name in names),
        ]
        for block in board["blocks"]
    ]
    return "\n".join([_seeds(board), "", table(head, lines)])


def _with_interval(entry: Mapping[str, Any]) -> str:
    if entry["mean"] is None:
        return "–"
    text = number(entry["mean"]) + (f" ± {number(entry['std'])}" if entry["std"] is not None else "")
    low, high = entry["intervals"][0]
    return text if low is None or len(entry["intervals"]) > 1 else f"{text} [{number(low, 2)}, {number(high, 2)}]"


def _seeds(board: Board) -> str:
    first = next(iter(board["blocks"][0]["values"].values()))
    return f"Seeds: {', '.join(first['seeds'])}."
