"""Numbers as reports, pages and terminal print them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from medfed.evaluation.verdict import Bounded
from medfed.records.schema import PictureMean, ProvenanceFile

MINUS, MISSING = "−", "–"


def natural(name: str) -> list[tuple[str, int]]:
    """Sort key that puts ``site-10`` after ``site-9``."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """Print a number with a true minus sign; a missing one is a dash."""
    if value is None:
        return MISSING
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("-", MINUS)


def bounds(row: Bounded | PictureMean, digits: int = 2, *, signed: bool = False) -> str:
    """Print a row's interval, or nothing."""
    if row.ci_low is None or row.ci_high is None:
        return ""
    return f"[{number(row.ci_low, digits, signed=signed)}, {number(row.ci_high, digits, signed=signed)}]"


def count(value: int) -> str:
    """Print a count with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def plural(value: int, noun: str) -> str:
    """Print a number of things."""
    return f"{value} {noun}{'' if value == 1 else 's'}"


def size(num_bytes: float | int) -> str:
    """Print bytes in the unit that reads best (powers of 1000)."""
    units = ("B", "kB", "MB", "GB")
    power = next((power for power in range(3) if num_bytes < 1000 ** (power + 1)), 3)
    return f"{int(num_bytes) / 1000**power:.{min(power, 1)}f} {units[power]}"


def duration(seconds: float) -> str:
    """Print seconds as seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def range_text(values: Sequence[float | None]) -> str:
    """Say in words from where to where values go."""
    known = [value for value in values if value is not None]
    if not known:
        return "not measured"
    return f"{min(known):g} to {max(known):g}" if min(known) < max(known) else f"{known[0]:g}"


def joined(values: Iterable[object]) -> str:
    """Print different values once each, with commas."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "---") -> str:
    """Return a Markdown table; ``align`` is the rule of all columns but the first. A bar inside a cell is escaped."""
    lines = [head, ["---", *[align] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def terminal_table(
    title: str, texts: Sequence[str], numbers: Iterable[str], rows: Iterable[Sequence[str]], others: Iterable[str] = ()
) -> Table:
    """Return a table for the terminal: columns of texts, of numbers, and of texts again; nothing is markup."""
    table = Table(*texts, title=Text(title), title_justify="left", box=SIMPLE_HEAD)
    for head in numbers:
        table.add_column(Text(head), justify="right")
    for head in others:
        table.add_column(head)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def origin(runs: Sequence[ProvenanceFile]) -> str:
    """Say which code, processor and day numbers come from, and how far they are the same elsewhere."""
    commits = joined(f"{run.commit[:7]}{' with changes' if run.dirty else ''}" for run in runs if run.commit)
    processors = joined(run.processor for run in runs if run.processor != "unknown")
    days = sorted({run.finished[:10] for run in runs if run.finished})
    day = " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "date not recorded"
    facts = f"commit {commits or 'not recorded'}, {processors or 'CPU model not recorded'}, {day}"
    return f"Made with {facts}. Another CPU model gives other last bits, which training can amplify."
