"""Names and numbers as the report prints them, and the published figures beside which it prints them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from medfed.report.read import RunFiles
from medfed.report.records import ScoreRow

MODELS = {
    "fedkim": "Injected LLM",
    "federated": "Federated-only",
    "local": "Local-only",
    "centralised": "Centralised",
    "heads": "Heads beside the LLM",
    "always-yes": "Always yes",
    "always-no": "Always no",
    "majority": "Majority answer",
    "constant-frequent": "Most frequent answer",
    "constant-empty": "No tumour anywhere",
    "constant-tie": "All films alike",
    "constant-best": "Best constant answer",
}

MINUS, MISSING = "−", "–"


class Published(NamedTuple):
    """A number someone else printed, on other data."""

    task: str
    method: str
    backbone: str
    metric: str
    value: float
    source: str


@cache
def published() -> tuple[Published, ...]:
    """All published numbers the report knows, as fractions."""
    with (Path(__file__).parent / "published.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return tuple(
        Published(row["task"], row["method"], row["backbone"], row["metric"], float(row["value"]), row["source"])
        for row in rows
    )


def paper_task(task: str) -> str:
    """The paper's code of a task: ``ped-nih`` asks the paper's ``PED`` of other images."""
    return task.partition("-")[0].upper()


def task_title(run: RunFiles, task: str) -> str:
    """A task's title as the run recorded it, else its name."""
    return run.provenance.titles.get(task) or task.upper()


def model_title(model: str) -> str:
    """What a table prints for a model."""
    return MODELS.get(model, model.replace("-", " ").capitalize() if is_constant(model) else model)


def is_constant(model: str) -> bool:
    """Whether a model gives every example the same answer by construction."""
    return model == "majority" or model.startswith(("always-", "constant-"))


def model_order(models: Sequence[str]) -> list[str]:
    """Sort models: the injected LLM, the federated-only model, others as they come, constants last."""
    first = {"fedkim": 0, "federated": 1}
    return sorted(dict.fromkeys(models), key=lambda model: (is_constant(model), first.get(model, 2)))


def model_style(model: str) -> str:
    """CSS class that colours a model everywhere."""
    if is_constant(model):
        return "constant"
    return model if model in ("fedkim", "federated") else "other"


def ordered(run: RunFiles, tasks: Iterable[str]) -> list[str]:
    """Sort tasks as the study lists them, trained first; others follow as they come."""
    listed = [run.study.get("train"), run.study.get("unseen")]
    known = [str(name) for names in listed if isinstance(names, list) for name in names]
    given = list(dict.fromkeys(tasks))
    return [name for name in dict.fromkeys(known) if name in given] + [name for name in given if name not in known]


def natural(name: str) -> list[tuple[str, int]]:
    """Sort key that puts ``site-10`` after ``site-9``."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """Print a number with a true minus sign; a missing one is a dash."""
    if value is None:
        return MISSING
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("-", MINUS)


def bounds(row: ScoreRow, digits: int = 2, *, signed: bool = False) -> str:
    """Print a row's interval, or nothing."""
    if row.ci_low is None or row.ci_high is None:
        return ""
    return f"[{number(row.ci_low, digits, signed=signed)}, {number(row.ci_high, digits, signed=signed)}]"


def count(value: int) -> str:
    """Print a count with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def size(num_bytes: int) -> str:
    """Print bytes in the unit that reads best (powers of 1000)."""
    units = ("B", "kB", "MB", "GB")
    power = next((power for power in range(3) if num_bytes < 1000 ** (power + 1)), 3)
    return f"{num_bytes / 1000**power:.{min(power, 1)}f} {units[power]}"


def duration(seconds: float) -> str:
    """Print seconds as seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
