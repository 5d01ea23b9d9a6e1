"""The rows as text: the head, the table, the targets that are missed, and the place in the README."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.rows import NEAR, SURE, Row

MARKER = "bench"
LEGEND = (
    "A target ≤ or ≥ is reached if the ratio holds it. A target “= 1.00” needs, to two decimals, a ratio at most"
    f" {NEAR:.2f} from 1.00 and both ends of the interval at most {SURE:.2f}. The lower end is not above 1.00, so a"
    " wide interval reaches nothing."
)
COLUMNS = ("what", "ratio", "95 % interval", "target", "reached", "turns", "the first takes")


def render(head: Mapping[str, str], rows: Sequence[Row]) -> str:
    """Return the section in Markdown: what machine, what was missed, and every row, losing ones too."""
    parts = [
        f"{_sentence(head)}\n\n{_verdict(rows)}",
        "<details><summary>All rows</summary>",
        LEGEND,
        _table(rows),
        "</details>",
    ]
    return "\n\n".join(parts)


def insert(page: Path, text: str) -> None:
    """Put ``text`` between the page's markers.

    Raises:
        ValueError: it has none.
    """
    old = page.read_text(encoding="utf-8")
    pattern = rf"(<!-- {MARKER} -->\n).*?(<!-- /{MARKER} -->)"
    new, count = re.subn(pattern, lambda match: f"{match[1]}{text}\n{match[2]}", old, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{page} has no markers <!-- {MARKER} --> … <!-- /{MARKER} -->")
    page.write_text(new, encoding="utf-8")


def _sentence(head: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in head.items()) + "."


def _verdict(rows: Sequence[Row]) -> str:
    """Say how many targets are reached, and name those that are not."""
    wanted = [row for row in rows if row.reached is not None]
    if not wanted:
        return "No targets among these rows."
    missed = [
        f"- missed: {row.setting}: {_what(row)} is {row.ratio:.2f}, {row.target} is wanted"
        for row in wanted
        if not row.reached
    ]
    return "\n".join([f"{len(wanted) - len(missed)} of {len(wanted)} targets are reached.", *missed])


def _table(rows: Sequence[Row]) -> str:
    lines = [_line(COLUMNS), _line([" --- ", *["--:"] * (len(COLUMNS) - 1)])]
    settings = [(row.group, row.setting) for row in rows]
    for number, row in enumerate(rows):
        if number == 0 or settings[number] != settings[number - 1]:
            lines.append(_line([f"**{row.group}**: {row.setting}", *[""] * (len(COLUMNS) - 1)]))
        lines.append(_line(_cells(row)))
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    if row.ratio is None:
        return [f"{_what(row)}: {row.note}", "–", "", row.target or "", "", "", ""]
    interval = "exact" if row.low is None or row.high is None else f"{row.low:.2f}–{row.high:.2f}"
    reached = {None: "", True: "yes", False: "**no**"}[row.reached]
    return [
        _what(row) + _remarks(row),
        f"{row.ratio:.2f}",
        interval,
        row.target or "",
        reached,
        str(row.turns),
        row.takes,
    ]


def _what(row: Row) -> str:
    measure = "" if row.measure in ("CPU time", "") else f", {row.measure}"
    return f"{row.over} ÷ {row.under}{measure}"


def _remarks(row: Row) -> str:
    """Return what else is to be known, in brackets."""
    wall = "" if row.wall_ratio is None else f"wall time {row.wall_ratio:.2f}"
    remarks = "; ".join(part for part in (wall, row.note) if part)
    return f" ({remarks})" if remarks else ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
