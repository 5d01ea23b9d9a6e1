"""The score tables of a model card, in Markdown: every number is a row of the run's ``scores.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from medfed.evaluation.metrics import METRICS
from medfed.evaluation.text import TEXT_METRICS
from medfed.report.names import bounds, is_constant, model_order, model_title, number, ordered, task_title
from medfed.report.read import RunFiles
from medfed.report.records import ScoreRow

MODEL = "fedkim"
CLOSED, OPEN = ("auroc", "accuracy"), ("token_f1",)
"""Metrics of the table of all tasks."""
PARTS = {None: "", "all": "", "closed": " (closed questions)", "open": " (open questions)"}
TITLES: Mapping[str, str] = {**{metric.name: metric.title for metric in METRICS}, **TEXT_METRICS}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; a bar inside a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def task_scores(run: RunFiles, task: str) -> str:
    """Return every metric of every model on one task, constants last, with n; or that it was not scored."""
    mine = [row for row in _rows(run) if row.task == task]
    if not mine:
        return "This task was not scored in the run."
    groups = dict.fromkeys((row.part, row.n) for row in mine)  # of closed questions not all have a known class
    return "\n\n".join(_table([row for row in mine if (row.part, row.n) == group]) for group in groups)


def all_scores(run: RunFiles) -> str:
    """Return lines for every task: the injected LLM beside the best constant answer."""
    rows = _rows(run)
    lines = [line for task in ordered(run, [row.task for row in rows]) for line in _lines(run, rows, task)]
    head = ["task", "", "n", "metric", model_title(MODEL), "best constant answer"]
    return table(head, lines)


def _rows(run: RunFiles) -> list[ScoreRow]:
    return [*run.scores.rows, *run.open_scores.rows]


def _table(rows: Sequence[ScoreRow]) -> str:
    found = {(row.model, row.metric): row for row in rows}
    metrics = [name for name in TITLES if any(row.metric == name for row in rows)]
    models = model_order([row.model for row in rows])
    lines = [[model_title(model), *(_cell(found.get((model, name))) for name in metrics)] for model in models]
    positive = f", {rows[0].num_positive} positive" if rows[0].num_positive is not None else ""
    size = f"n = {rows[0].n}{positive}{PARTS[rows[0].part]}; value [95 % interval]"
    return f"{size}:\n\n{table(['model', *(TITLES[name] for name in metrics)], lines)}{_reasons(rows)}"


def _reasons(rows: Sequence[ScoreRow]) -> str:
    said = {row.reason: None for row in rows if row.model == MODEL and row.reason}
    return "".join(f"\n\n*Of the {model_title(MODEL)}: {reason}.*" for reason in said)


def _cell(row: ScoreRow | None) -> str:
    if row is None:
        return ""
    return f"{number(row.value)} {bounds(row, 3)}".strip()


def _lines(run: RunFiles, rows: Sequence[ScoreRow], task: str) -> Iterator[list[str]]:
    mine = [row for row in rows if row.task == task and row.part in (None, "all")]
    for metric in CLOSED if mine[0].part is None else OPEN:
        shown = [row for row in mine if row.metric == metric]
        ours = next((row for row in shown if row.model == MODEL), None)
        constants = sorted((row for row in shown if is_constant(row.model)), key=lambda row: row.value or 0.0)
        best = f"{number(constants[-1].value)} ({model_title(constants[-1].model).lower()})" if constants else ""
        yield [task_title(run, task), mine[0].role, str(mine[0].n), TITLES[metric], _cell(ours), best]
