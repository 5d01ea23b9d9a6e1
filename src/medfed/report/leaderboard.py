"""The benchmark's leaderboard as a page, as Markdown and as a terminal table. It prints numbers and computes none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table as TerminalTable

from medfed.records.schema import Block, LeaderboardFile, Standing
from medfed.report import html
from medfed.report.charts import rank_diagram
from medfed.report.models import BEST_CONSTANT, is_constant, model_title
from medfed.report.run import Run
from medfed.report.single import synthetic_banner
from medfed.report.text import MISSING, duration, markdown_table, number, origin, size, terminal_table

LEVEL = 0.05
COSTS = ("bytes_up", "bytes_down", "train_seconds", "peak_memory_bytes")


class BlockRow(NamedTuple):
    """A block as printed: a text per algorithm and bound, which algorithm is best, and the worst client's values."""

    name: str
    metric: str
    n: int
    texts: list[str]
    best: list[bool]
    worst: list[str]


def leaderboard_page(board: LeaderboardFile, runs: Sequence[Run]) -> html.Page:
    """Return the page; data and provenance are those of ``runs``."""
    kind = f"medfed benchmark of {len(board.algorithms)} algorithms on {len(board.blocks)} blocks"
    sections = [
        html.Section("ranks", "Average ranks", _ranks(board)),
        html.Section("blocks", "Every block", _blocks(board)),
        html.Section("worst", "Worst client", _worst(board)),
    ]
    made, verdicts, banners = origin([run.provenance for run in runs]), [conclusion(board)], synthetic_banner(runs)
    return html.Page(board.name, kind, sections, made, verdicts, board.description, banners)


def leaderboard_table(board: LeaderboardFile) -> TerminalTable:
    """Return ranks and values for the terminal."""
    heads = map(model_title, [*order(board), *bounds(board)])
    rows = [(row.name, row.metric, *row.texts) for row in block_rows(board)]
    table = terminal_table(f"{board.name}: primary metric, mean over seeds", ["block", "metric"], heads, rows)
    table.add_section()
    table.add_row("average rank", "", *rank_texts(board))
    return table


def leaderboard_markdown(board: LeaderboardFile) -> str:
    """Return the leaderboard as Markdown."""
    head = ["block", "metric", *order(board), *map(model_title, bounds(board))]
    lines = [[row.name, row.metric, *row.texts] for row in block_rows(board)]
    lines.append(["**average rank**", "", *rank_texts(board)])
    return f"# {board.name}\n\n{board.description}\n\n{markdown_table(head, lines)}\n\n{conclusion(board)}\n"


def conclusion(board: LeaderboardFile) -> str:
    """Print what the ranks allow to conclude."""
    names, critical, p = order(board), board.critical_difference, board.friedman_p
    ranks = {name: board.ranks[name].mean for name in names}
    first = ranks[names[0]] if names else None
    if critical is None or first is None:
        return "There is nothing to rank."
    best = f"{names[0]} has the best average rank, {number(first, 2)} over {board.num_blocks} blocks"
    if p is None or p >= LEVEL:
        tested = "" if p is None else f" (Friedman p = {p:.2g})"
        return f"{best}, but no algorithm differs significantly from another{tested}."
    beaten = [name for name in names[1:] if (ranks[name] or 0.0) - first >= critical]
    over = f"it is significantly better than {', '.join(beaten)}"
    over = over if beaten else "the algorithms differ, but it is not significantly better than any single one"
    return f"{best} (Friedman p = {p:.2g}); {over} (critical difference {critical:.2f})."


def order(board: LeaderboardFile) -> list[str]:
    """Return the algorithms, best average rank first."""
    ranks = {name: board.ranks[name].mean for name in board.algorithms}
    return sorted(board.algorithms, key=lambda name: (ranks[name] is None, ranks[name] or 0.0))


def bounds(board: LeaderboardFile) -> list[str]:
    """Return the models that bound the algorithms: centralised, local, and the best constant of each block."""
    names = dict.fromkeys(name for block in board.blocks for name in block.bounds)
    return [*(name for name in names if not is_constant(name)), BEST_CONSTANT]


def block_rows(board: LeaderboardFile) -> list[BlockRow]:
    """Return every block as printed."""
    rows = []
    for block in board.blocks:
        values = [block.values[name] for name in order(board)]
        best = (max if block.higher_is_better else min)((v.mean for v in values if v.mean is not None), default=None)
        texts = [standing_text(entry) for entry in [*values, *(_bound(block, name) for name in bounds(board))]]
        bold = [entry.mean is not None and entry.mean == best for entry in values]
        worst = [number(entry.worst_client) for entry in values]
        rows.append(BlockRow(" · ".join(block.name), block.title, block.n, texts, bold, worst))
    return rows


def rank_texts(board: LeaderboardFile) -> list[str]:
    """Return the average rank of every algorithm, and a blank per bound."""
    return [*(number(board.ranks[name].mean, 2) for name in order(board)), *[""] * len(bounds(board))]


def cost_rows(board: LeaderboardFile) -> list[tuple[str, list[str]]]:
    """Return, per algorithm, its rank and what a run costs on the average over the blocks."""
    rows = []
    for name in order(board):
        costs = [cost for block in board.blocks if (cost := block.values[name].cost) is not None]
        up, down, seconds, memory = (sum(getattr(c, key) for c in costs) / max(len(costs), 1) for key in COSTS)
        rows.append((name, [number(board.ranks[name].mean, 2), size(up), size(down), duration(seconds), size(memory)]))
    return rows


def standing_text(entry: Standing) -> str:
    """Print a mean over seeds with its standard deviation."""
    if entry.mean is None:
        return MISSING
    return number(entry.mean) + (f" ± {number(entry.std)}" if entry.std is not None else "")


def _ranks(board: LeaderboardFile) -> list[html.Part]:
    text = "A block is one task under one partition. The mean over seeds of its primary metric ranks the algorithms; 1 "
    text += "is best. Bars join algorithms whose average ranks lie within Nemenyi's critical difference at 5 %. Blocks "
    text += "that share a task are not independent, so the test finds differences a little too easily."
    text += f" {board.num_left_out} blocks without a defined metric are left out." if board.num_left_out else ""
    ranks = {name: rank for name in order(board) if (rank := board.ranks[name].mean) is not None}
    parts: list[html.Part] = [html.Text(text, "soft")]
    if board.critical_difference is not None and len(ranks) == len(board.algorithms):
        picture = rank_diagram(ranks, board.critical_difference, board.groups)
        parts.append(html.Figures([html.Figure("Average ranks", picture)], layout="ranks", captions=False))
    heads = html.columns("Average rank", "Sent up", "Sent down", "Client training", "Largest memory")
    rows = html.Group([html.Row(name, texts) for name, texts in cost_rows(board)])
    caption = "Leaderboard, and what a run costs on the average"
    columns = [*html.columns("Algorithm", style=""), *heads]
    return [*parts, html.Table("Leaderboard", columns, [rows], "matrix", caption)]


def _blocks(board: LeaderboardFile) -> list[html.Part]:
    text = "Primary metric, mean ± standard deviation over seeds: every client's deployed model on its own test "
    text += "patients, pooled. Bounds: one party with all data, every client alone, the best constant answer. Where "
    text += "labels differ between clients, a personalised model gains from its client; a global one cannot."
    rows = []
    for row in block_rows(board):
        best = [*row.best, *[False] * (len(row.texts) - len(row.best))]
        cells = [html.Cell(cell, style=f"num{' strong' * bold}") for cell, bold in zip(row.texts, best, strict=True)]
        rows.append(html.Row(row.name, [html.Cell(row.metric, style="plain"), str(row.n), *cells]))
    heads = html.columns("n", *order(board), *map(model_title, bounds(board)))
    columns = [*html.columns("Block", "Metric", style=""), *heads]
    return [html.Text(text, "soft"), html.Table("Every block", columns, [html.Group(rows)], "matrix")]


def _worst(board: LeaderboardFile) -> list[html.Part]:
    text = "The same metric of the client that fares worst, mean over seeds. A good mean can hide a badly served one."
    rows = html.Group([html.Row(row.name, row.worst) for row in block_rows(board)])
    columns = [*html.columns("Block", style=""), *html.columns(*order(board))]
    return [html.Text(text, "soft"), html.Table("Worst client", columns, [rows], "matrix")]


def _bound(block: Block, name: str) -> Standing:
    if name != BEST_CONSTANT:
        return block.bounds.get(name, Standing())
    constants = [entry for model, entry in block.bounds.items() if is_constant(model) and entry.mean is not None]
    best = max if block.higher_is_better else min
    return best(constants, key=lambda entry: entry.mean or 0.0, default=Standing())
