"""Sections of the pages from a benchmark's ``leaderboard.json``."""

from __future__ import annotations

from pathlib import Path

from medfed.records.folder import RunFolder
from medfed.records.schema import LeaderboardFile as Board
from medfed.records.schema import Standing
from medfed.report.leaderboard import block_rows, bounds, conclusion, cost_rows, order, rank_texts, standing_text
from medfed.report.models import model_title
from medfed.report.text import number
from sections.comparison import table


def read_board(folder: Path) -> Board | None:
    """Return the leaderboard in ``folder``, or None."""
    run = RunFolder(folder)
    return run.read(Board) if run.exists(Board.NAME) else None


def blocks(board: Board) -> str:
    """A line per block: the primary metric of every algorithm and bound, then the average ranks and the verdict."""
    head = ["task · partition", "metric", "n", *order(board), *map(model_title, bounds(board))]
    lines = [[row.name, row.metric, str(row.n), *row.texts] for row in block_rows(board)]
    lines.append(["**average rank**", "", "", *rank_texts(board)])
    return "\n".join([_seeds(board), "", table(head, lines), "", conclusion(board)])


def costs(board: Board) -> str:
    """A line per algorithm: rank, bytes, seconds and memory of a run, on the average over the blocks."""
    head = ["algorithm", "average rank", "sent up", "sent down", "client training", "largest memory"]
    return table(head, [[name, *texts] for name, texts in cost_rows(board)])


def plain(board: Board) -> str:
    """A line per block without ranks, for boards whose last axis is no algorithm, or with few examples."""
    head = ["task", "metric", "n", *board.algorithms]
    lines = [
        [
            " · ".join(block.name),
            block.title,
            str(block.n),
            *(_with_interval(block.values[n]) for n in board.algorithms),
        ]
        for block in board.blocks
    ]
    return "\n".join([_seeds(board), "", table(head, lines)])


def _with_interval(entry: Standing) -> str:
    (low, high), *others = entry.intervals or ((None, None),)
    bounds_ = "" if entry.mean is None or low is None or others else f" [{number(low, 2)}, {number(high, 2)}]"
    return standing_text(entry) + bounds_


def _seeds(board: Board) -> str:
    first = next(iter(board.blocks[0].values.values()))
    return f"Seeds: {', '.join(first.seeds)}."
