"""The benchmark's leaderboard as a page, a Markdown table and a terminal table. It prints numbers and computes none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from medfed.core.files import write_whole
from medfed.report.names import MISSING, duration, is_constant, model_title, number, size
from medfed.report.page import render
from medfed.report.read import read_facts
from medfed.report.svg import coordinate, tag

Board = Mapping[str, Any]
WIDTH, MARGIN, LINE = 640.0, 150.0, 18.0
SYNTHETIC = "A simulator wrote the data; no patient is behind it. These ranks test the software, not medicine."


def write_leaderboard(board: Board, folders: Sequence[Path], out: Path) -> None:
    """Build the page and write it to ``out``, whole or not at all."""
    runs = [read_facts(folder) for folder in folders]
    made = any(facts.synthetic for run in runs for facts in run.provenance.data.values())
    content = {
        "name": board["name"],
        "description": board.get("description", ""),
        "synthetic": SYNTHETIC if made else "",
        "board": board,
        "order": order(board),
        "diagram": rank_diagram(board),
        "words": conclusion(board),
        "heads": [*order(board), *bounds(board)],
        "rows": [block_row(block, board) for block in board["blocks"]],
        "costs": cost_rows(board),
    }
    write_whole(out, render("leaderboard.html.jinja", content))


def leaderboard_table(board: Board) -> Table:
    """Return the ranks and values for the terminal."""
    table = Table(
        title=Text(f"{board['name']}: primary metric, mean over seeds"), title_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("block")
    table.add_column("metric")
    for name in (*order(board), *bounds(board)):
        table.add_column(Text(model_title(name)), justify="right")
    for block in board["blocks"]:
        table.add_row(*map(Text, (" · ".join(block["name"]), block["title"], *block_row(block, board)["texts"])))
    table.add_section()
    ranks = [number(board["ranks"][name]["mean"], 2) for name in order(board)]
    table.add_row("average rank", "", *ranks, *[""] * len(bounds(board)))
    return table


def leaderboard_markdown(board: Board) -> str:
    """Return the leaderboard as Markdown."""
    heads = ["block", "metric", *order(board), *map(model_title, bounds(board))]
    lines = [heads, ["---"] * len(heads)]
    lines += [[" · ".join(b["name"]), b["title"], *block_row(b, board)["texts"]] for b in board["blocks"]]
    lines += [["**average rank**", "", *(number(board["ranks"][name]["mean"], 2) for name in order(board))]]
    text = "\n".join("| " + " | ".join([*line, *[""] * (len(heads) - len(line))]) + " |" for line in lines)
    return f"# {board['name']}\n\n{board.get('description', '')}\n\n{text}\n\n{conclusion(board)}\n"


def conclusion(board: Board) -> str:
    """Say what the ranks allow to say."""
    names = order(board)
    ranks = {name: board["ranks"][name]["mean"] for name in names}
    if board["critical_difference"] is None or ranks[names[0]] is None:
        return "There is nothing to rank."
    best = f"{names[0]} has the best average rank, {number(ranks[names[0]], 2)} over {board['num_blocks']} blocks"
    p = board["friedman_p"]
    if p is None or p >= 0.05:
        told = "" if p is None else f" (Friedman p = {p:.2g})"
        return f"{best}, but no algorithm differs significantly from another{told}."
    beaten = [name for name in names[1:] if ranks[name] - ranks[names[0]] >= board["critical_difference"]]
    over = (
        f"it is significantly better than {', '.join(beaten)}"
        if beaten
        else "the algorithms differ, but it is not significantly better than any single one"
    )
    return f"{best} (Friedman p = {p:.2g}); {over} (critical difference {board['critical_difference']:.2f})."


def order(board: Board) -> list[str]:
    """Return the algorithms, best average rank first."""
    ranks = board["ranks"]
    return sorted(board["algorithms"], key=lambda name: (ranks[name]["mean"] is None, ranks[name]["mean"] or 0.0))


def bounds(board: Board) -> list[str]:
    """Return the models beside the algorithms: centralised, local, and the best constant of each block."""
    found = dict.fromkeys(name for block in board["blocks"] for name in block["bounds"])
    return [*(name for name in found if not is_constant(name)), "constant-best"]


def block_row(block: Mapping[str, Any], board: Board) -> dict[str, Any]:
    """Return a block's texts, one per algorithm and bound, and which of them is best."""
    values = {name: block["values"][name] for name in order(board)}
    known = [entry["mean"] for entry in values.values() if entry["mean"] is not None]
    best = (max if block["higher_is_better"] else min)(known, default=None)
    texts = [_text(entry) for entry in values.values()]
    texts += [_text(_bound(block, name)) for name in bounds(board)]
    return {
        "name": " · ".join(block["name"]),
        "metric": block["title"],
        "n": block["n"],
        "texts": texts,
        "best": [entry["mean"] is not None and entry["mean"] == best for entry in values.values()],
        "worst": [number(entry["worst_client"]) for entry in values.values()],
    }


def cost_rows(board: Board) -> list[dict[str, Any]]:
    """Return, per algorithm, what a run costs on the average over the blocks."""
    rows = []
    for name in order(board):
        entries = [block["values"][name] for block in board["blocks"] if "bytes_up" in block["values"][name]]
        mean = {
            key: sum(e[key] for e in entries) / len(entries)
            for key in ("bytes_up", "bytes_down", "train_seconds", "peak_memory_bytes")
        }
        rows.append(
            {
                "name": name,
                "texts": [
                    number(board["ranks"][name]["mean"], 2),
                    size(int(mean["bytes_up"])),
                    size(int(mean["bytes_down"])),
                    duration(mean["train_seconds"]),
                    size(int(mean["peak_memory_bytes"])),
                ],
            }
        )
    return rows


def rank_diagram(board: Board) -> Markup:
    """Draw the critical-difference diagram (Demšar 2006, Figure 1): ranks on a line, bars join what does not differ."""
    names, critical = order(board), board["critical_difference"]
    ranks = {name: board["ranks"][name]["mean"] for name in names}
    if critical is None or any(rank is None for rank in ranks.values()):
        return Markup("")
    count = len(names)

    def x(rank: float | int) -> float:
        return MARGIN + (rank - 1) / max(count - 1, 1) * (WIDTH - 2 * MARGIN)

    top = 52.0
    foot = top + 12.0 * len(board["groups"]) + 10
    half = (count + 1) // 2
    marks = [tag("line", x1=x(1), x2=x(count), y1=top, y2=top, class_="axis")]
    for place in range(1, count + 1):
        marks.append(tag("line", x1=x(place), x2=x(place), y1=top - 4, y2=top + 4, class_="axis"))
        marks.append(tag("text", str(place), x=x(place), y=top - 8, class_="tick middle"))
    marks.append(tag("line", x1=x(1), x2=x(1 + critical), y1=18.0, y2=18.0, class_="axis"))
    marks.append(tag("text", f"critical difference {critical:.2f}", x=x(1), y=12.0, class_="tick"))
    for number_, group in enumerate(board["groups"]):
        y = top + 12.0 * (number_ + 1)
        ends = [x(ranks[name]) for name in group]
        marks.append(tag("line", x1=min(ends) - 3, x2=max(ends) + 3, y1=y, y2=y, class_="together"))
    for index, name in enumerate(names):
        left = index < half
        y = foot + LINE * (index if left else count - 1 - index) + 8
        edge = MARGIN - 8 if left else WIDTH - MARGIN + 8
        corners = ((x(ranks[name]), top), (x(ranks[name]), y), (edge, y))
        points = " ".join(f"{coordinate(across)},{coordinate(down)}" for across, down in corners)
        marks.append(tag("polyline", points=points, class_="stem"))
        text = f"{name} {ranks[name]:.2f}"
        marks.append(
            tag("text", text, x=edge - 5 if left else edge + 5, y=y + 4, class_="tick end" if left else "tick")
        )
    height = foot + LINE * half + 14
    told = "; ".join(f"{name} {rank:.2f}" for name, rank in ranks.items())
    box = f"0 0 {coordinate(WIDTH)} {coordinate(height)}"
    return tag(
        "svg", *marks, viewBox=box, role="img", aria_label=f"Average ranks, 1 is best: {told}", class_="chart ranks"
    )


def _bound(block: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if name != "constant-best":
        return dict(block["bounds"].get(name, {"mean": None, "std": None}))
    found = [entry for model, entry in block["bounds"].items() if is_constant(model) and entry["mean"] is not None]
    pick = max if block["higher_is_better"] else min
    return pick(found, key=lambda entry: entry["mean"], default={"mean": None, "std": None})


def _text(entry: Mapping[str, Any]) -> str:
    if entry["mean"] is None:
        return MISSING
    return number(entry["mean"]) + (f" ± {number(entry['std'])}" if entry.get("std") is not None else "")
