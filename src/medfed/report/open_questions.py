"""Answers in words: the report's table of the open tasks, and their lines of the terminal summary."""

from __future__ import annotations

from dataclasses import dataclass

from medfed.evaluation.text_metrics import TEXT_METRICS
from medfed.report.names import bounds, is_constant, model_order, model_style, model_title, number, ordered, task_title
from medfed.report.read import RunFiles
from medfed.report.records import ScoreRow

PARTS = {"all": "All questions", "closed": "Closed questions", "open": "Open questions"}
BEST = "constant-best"


@dataclass(frozen=True)
class AnswerRow:
    """One model on one part of a task's questions: value and interval of every text metric; a constant's text."""

    title: str
    style: str
    said: str
    single_class: bool
    cells: list[tuple[str, str]]


@dataclass(frozen=True)
class PartBlock:
    """All models on one part; ``note`` says how the injected LLM stands to the best constant answer."""

    title: str
    size: str
    note: str
    rows: list[AnswerRow]


@dataclass(frozen=True)
class OpenBlock:
    """One open task; ``likelihood`` is a sentence on the yes/no questions per model."""

    title: str
    parts: list[PartBlock]
    likelihood: list[str]


def open_blocks(run: RunFiles) -> list[OpenBlock]:
    """One block per open task in the study's order."""
    return [
        OpenBlock(
            task_title(run, task),
            [block for part, title in PARTS.items() if (block := _part(run, task, part, title)) is not None],
            _likelihood(run, task),
        )
        for task in ordered(run, [row.task for row in run.open_scores.rows])
    ]


def signatures(run: RunFiles) -> list[str]:
    """The statements of how sacreBLEU was computed; one, unless runs were mixed."""
    return sorted({row.signature for row in run.open_scores.rows if row.signature})


def summary_lines(run: RunFiles, models: list[str]) -> list[list[str]]:
    """Cells of the terminal summary: title, n, token F1 of ``models``, comparison with the best constant answer."""
    lines = []
    for task in ordered(run, [row.task for row in run.open_scores.rows]):
        rows = _rows(run, task, "all")
        found = [rows.get((model, "token_f1")) for model in models]
        values = [f"{number(row.value)} {bounds(row)}" if row is not None else "" for row in found]
        count = next((row.n for row in rows.values()), 0)
        lines.append(
            [f"{task_title(run, task)} (unseen): token F1", str(count), *values, _against_best(run, task, "all")]
        )
    return lines


def _rows(run: RunFiles, task: str, part: str) -> dict[tuple[str, str], ScoreRow]:
    mine = [row for row in run.open_scores.rows if row.task == task and row.part == part]
    return {(row.model, row.metric): row for row in mine}


def _part(run: RunFiles, task: str, part: str, title: str) -> PartBlock | None:
    rows = {key: row for key, row in _rows(run, task, part).items() if row.metric in TEXT_METRICS}
    if not any(row.n for row in rows.values()):
        return None
    models = model_order([model for model, _ in rows])
    size = f"n = {next(iter(rows.values())).n}"
    return PartBlock(title, size, _against_best(run, task, part), [_answer_row(model, rows) for model in models])


def _answer_row(model: str, rows: dict[tuple[str, str], ScoreRow]) -> AnswerRow:
    found = [rows.get((model, metric)) for metric in TEXT_METRICS]
    cells = [(number(row.value), bounds(row)) if row is not None else (number(None), "") for row in found]
    said = next((row.answer for row in found if row is not None and row.answer), "")
    single = any(row is not None and row.single_class for row in found) and not is_constant(model)
    return AnswerRow(model_title(model), model_style(model), said, single, cells)


def _against_best(run: RunFiles, task: str, part: str) -> str:
    """How the injected LLM's token F1 stands to the best constant answer's, with the interval of the difference."""
    rows = [
        row
        for row in run.open_scores.differences
        if (row.task, row.part, row.metric, row.model, row.baseline) == (task, part, "token_f1", "fedkim", BEST)
    ]
    if not rows or rows[0].value is None:
        return ""
    row = rows[0]
    verdict = "no clear difference to"
    if row.ci_low is not None and row.ci_high is not None and (row.ci_low > 0 or row.ci_high < 0):
        verdict = "better than" if row.ci_low > 0 else "worse than"
    difference = f"{number(row.value, signed=True)} {bounds(row, 3, signed=True)}".strip()
    return f"{verdict} the best constant answer {difference}"


def _likelihood(run: RunFiles, task: str) -> list[str]:
    rows = _rows(run, task, "closed")
    lines = []
    for model in model_order([model for model, metric in rows if metric == "auroc" and not is_constant(model)]):
        auroc, balanced = rows[model, "auroc"], rows.get((model, "balanced_accuracy"))
        second = f", balanced accuracy {number(balanced.value)} {bounds(balanced)}" if balanced is not None else ""
        reason = f" ({auroc.reason})" if auroc.value is None and auroc.reason else ""
        lines.append(
            f"{model_title(model)}, likelihood of yes against no on {auroc.n} yes/no questions: "
            f"AUROC {number(auroc.value)} {bounds(auroc)}{reason}{second}."
        )
    return lines
