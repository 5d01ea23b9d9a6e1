"""A sweep's ``comparison.json`` as the pages read it, and how they print its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfed.core.catalog import TASKS
from medfed.records.folder import RunFolder
from medfed.records.schema import ComparedDifference, ComparedRow, ComparisonFile
from medfed.report.models import is_constant
from medfed.report.published import BACKBONE, METHOD
from medfed.report.text import MISSING, number

FILE = ComparisonFile.NAME
MEANS = {"mean-trained": "mean of the trained tasks", "mean-unseen": "mean of the unseen closed tasks"}
MIN_SEEDS = 5


@dataclass(frozen=True)
class Results:
    """A comparison."""

    typed: ComparisonFile

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Results:
        """Check and wrap what ``comparison.json`` holds."""
        return cls(ComparisonFile.model_validate(raw))

    @property
    def backbones(self) -> dict[str, dict[str, str]]:
        """Label by backbone and method; a sweep without such an axis has the backbone ``""``."""
        labels: dict[str, dict[str, str]] = {}
        for label in self.typed.labels:
            values = self.typed.cells.get(label, {})
            labels.setdefault(values.get(BACKBONE, ""), {})[values.get(METHOD, label)] = label
        return labels

    def tasks(self, role: str, *, is_closed: bool = True) -> list[str]:
        """Tasks of a role in the study's order, without the means."""
        rows = [row for row in self.typed.rows if row.role == role and row.task not in MEANS]
        return list(dict.fromkeys(row.task for row in rows if (row.part is None) == is_closed))

    def row(self, label: str, model: str, task: str, metric: str, part: str | None = None) -> ComparedRow | None:
        """One value, or None where it was not measured."""
        key = (label, model, task, metric, part)
        return next((r for r in self.typed.rows if (r.label, r.model, r.task, r.metric, r.part) == key), None)

    def best_constant(self, label: str, task: str, metric: str, part: str | None = None) -> ComparedRow | None:
        """The constant answer with the highest value."""
        rows = (self.row(label, model, task, metric, part) for model in self.models if is_constant(model))
        held = [row for row in rows if row is not None and row.value is not None]
        return max(held, key=lambda row: row.value or 0.0, default=None)

    @property
    def models(self) -> list[str]:
        """All models of the comparison."""
        return list(dict.fromkeys(row.model for row in self.typed.rows))

    def gap(
        self, pair: tuple[str, str], baseline_model: str, task: str, metric: str, part: str | None = None
    ) -> ComparedDifference | None:
        """The injected LLM of ``pair[0]`` against ``baseline_model`` of ``pair[1]``; None where never compared."""
        key = (*pair, baseline_model, task, metric, part)
        for row in self.typed.differences:
            if (row.label, row.baseline_label, row.baseline_model, row.task, row.metric, row.part) == key:
                return row
        return None

    def seeds(self, labels: Iterable[str] | None = None) -> str:
        """One sentence: which seeds, and what follows where they are few."""
        chosen = [self.typed.seeds.get(label, ()) for label in (labels or self.typed.labels)]
        held = sorted({seed for seeds_of_label in chosen for seed in seeds_of_label})
        text = f"Seeds: {', '.join(map(str, held))}."
        few = min(map(len, chosen), default=0) < MIN_SEEDS
        return f"{text} Fewer than {MIN_SEEDS} seeds: no difference is called significant." if few else text


def read_results(path: Path) -> Results | None:
    """Read ``comparison.json`` in ``path`` (or at it); None where there is none."""
    folder = RunFolder(path if path.is_dir() else path.parent)
    return Results(folder.read(ComparisonFile)) if folder.exists(FILE) else None


def task_title(task: str) -> str:
    """Title of a task or a mean in a table."""
    return MEANS.get(task) or (TASKS[task].title if task in TASKS else task.upper())


def printed(row: ComparedRow | ComparedDifference | None, *, signed: bool = False, with_interval: bool = True) -> str:
    """A value with its interval; a dash where nothing was measured."""
    if row is None or row.value is None:
        return MISSING
    flag = "\\*" if isinstance(row, ComparedRow) and _is_stuck(row) else ""
    return f"{number(row.value, signed=signed)}{flag} {interval(row, signed=signed) if with_interval else ''}".strip()


def _is_stuck(row: ComparedRow) -> bool:
    """Whether a model, not a constant and not a mean, gives every example one answer."""
    return row.single_class and not is_constant(row.model) and row.task not in MEANS


def interval(row: ComparedRow | ComparedDifference, *, signed: bool = False) -> str:
    """The 95 % interval in brackets, or nothing."""
    if row.ci_low is None or row.ci_high is None:
        return ""
    return f"[{number(row.ci_low, signed=signed)}, {number(row.ci_high, signed=signed)}]"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))
