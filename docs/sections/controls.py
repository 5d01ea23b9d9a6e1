"""Tables of every control below the injected LLM: of one run, and over seeds. Rows are models, columns are tasks.

A cell of a control holds its value and, below, the LLM's minus it; that is bold where the LLM loses by the whole
interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from medfed.evaluation.controls import INJECTED, JUDGED, is_control
from medfed.evaluation.verdict import CONTRADICTED, Gap, baseline_of, better
from medfed.records.schema import AnswerCheck, ComparedAnswers, ComparedRow, ScoreFile, ScoreRow
from medfed.report.comparison import LEADS
from medfed.report.controls import GROUPS, Group
from medfed.report.models import is_constant, is_single_head, model_order, model_title
from medfed.report.text import MISSING, bounds, number
from sections.comparison import MEANS, Results, task_title

Row = ScoreRow | ComparedRow
Title = Callable[[str], str]
NO_CONTROLS = (
    "*These runs are older than the controls: no head reused, no count, no LLM without the patient and no single LoRA "
    "stands here. Runs made anew bring them.*"
)
READING = (
    "A model's value, and below it the injected LLM's minus it on the same patients. Bold: the LLM loses by the whole "
    "interval. Bounds, which no verdict counts: the best head in hindsight, centralised training."
)


class Cells(NamedTuple):
    """Rows and differences of one injected LLM."""

    rows: Sequence[Row]
    gaps: Sequence[Gap]
    digits: int = 3

    @property
    def has_controls(self) -> bool:
        """Whether any control answered."""
        return any(is_control(row.model) for row in self.rows)


def of_run(scores: ScoreFile) -> Cells:
    """Return a run's cells."""
    return Cells(scores.rows, [gap for gap in scores.differences if gap.model == INJECTED], 2)


def of_label(results: Results, label: str) -> Cells:
    """Return the cells of one label of a comparison."""
    gaps = [gap for gap in results.typed.differences if (gap.label, gap.baseline_label) == (label, label)]
    return Cells([row for row in results.typed.rows if row.label == label], gaps)


def leading(results: Results, label: str) -> list[Gap]:
    """Return the differences of one label by every task's leading metric, without means over tasks."""
    gaps = of_label(results, label).gaps
    return [gap for gap in gaps if gap.metric == LEADS.get(gap.part) and gap.task not in MEANS]


def section(results: Results, label: str) -> str:
    """Return the controls of one label, over seeds; a sentence where its runs are older than the controls."""
    cells = of_label(results, label)
    checks = [check for check in results.typed.answers if check.label == label]
    return "\n\n".join([*tables(cells, task_title), follows(checks, task_title)]).strip()


def tables(cells: Cells, title: Title) -> list[str]:
    """Return a table per group of tasks, or the sentence that no control was run."""
    if not cells.has_controls:
        return [NO_CONTROLS]
    made = [_table(cells, group, title) for group in GROUPS]
    return [READING, *(text for text in made if text)]


def _table(cells: Cells, group: Group, title: Title) -> str:
    """Return the models that answer tasks of a group; empty where there is none."""
    mine = [row for row in cells.rows if (row.metric, row.part) == (group.metric, group.part) and row.n]
    mine = [row for row in mine if group.role in (None, row.role) and not is_single_head(row.model)]
    held = {(row.model, row.task): row for row in mine if row.value is not None}
    tasks = list(dict.fromkeys(task for _, task in held))
    known = [gap for gap in cells.gaps if (gap.metric, gap.part) == (group.metric, group.part)]
    gaps = {(baseline_of(gap), gap.task): gap for gap in known}
    printed = [model for model in model_order(model for model, _ in held) if _is_printed(model, group)]
    lines = []
    for model in printed:
        row = [_cell(held.get((model, task)), gaps.get((model, task)), cells.digits) for task in tasks]
        lines.append([model_title(model), *row])
    head = [group.caption, *(MEANS.get(task) or title(task) for task in tasks)]
    rule = ["---", *["--:"] * len(tasks)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines)) if tasks else ""


def _is_printed(model: str, group: Group) -> bool:
    """Of constants only the best answer in words: every other has an AUROC of 0.5."""
    return not is_constant(model) or (group.part == "open" and model == "constant-best")


def _cell(row: Row | None, gap: Gap | None, digits: int) -> str:
    """Return a value, below it the LLM's minus it; of the LLM its own interval."""
    if row is None:
        return MISSING
    value = number(row.value, digits)
    if row.model == INJECTED:
        return f"{value} {bounds(row, digits)}".strip()
    if gap is None or gap.value is None:
        return value
    less = f"{number(gap.value, digits, signed=True)} {bounds(gap, digits, signed=True)}".strip()
    loses = better(gap) == CONTRADICTED and (baseline_of(gap) in JUDGED or is_constant(baseline_of(gap)))
    return f"{value}<br>{f'**{less}**' if loses else less}"


def follows(checks: Iterable[AnswerCheck | ComparedAnswers], title: Title) -> str:
    """Return whether the LLM's answers follow the heads, the question's sense, its wording; empty without checks."""
    lines = [
        "| the LLM's answers | rank correlation with the heads | opposite to the question negated "
        "| same to paraphrases | n |",
        "|---|---|---|---|---|",
    ]
    for check in checks:
        ranks = [f"{model_title(name).lower()} {number(rho, 2)}" for name, rho in check.rank_correlation.items()]
        cells = [", ".join(ranks) or MISSING, number(check.negation, 2), number(check.paraphrases, 2), str(check.n)]
        lines.append(f"| {title(check.task)} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""
