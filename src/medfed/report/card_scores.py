"""The score tables of a model card, in Markdown: every number is a row of the run's ``scores.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from medfed.evaluation.metrics import METRICS
from medfed.evaluation.text import TEXT_METRICS
from medfed.report.names import bounds, is_constant, model_order, model_title, number, ordered, task_title
from medfed.report.read import RunFiles
from medfed.report.records import ScoreRow

MODEL = "fedkim"
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
    return "\n\n".join(_part(mine, part) for part in PARTS if any(row.part == part for row in mine))


def all_scores(run: RunFiles) -> str:
    """Return one line per task: the injected LLM beside the best constant answer."""
    rows = _rows(run)
    lines = [_line(run, rows, task) for task in ordered(run, [row.task for row in rows])]
    head = ["task", "", "n", "metric", model_title(MODEL), "best constant answer"]
    return table(head, lines)


def _rows(run: RunFiles) -> list[ScoreRow]:
    return [*run.scores.rows, *run.open_scores.rows]


def _part(rows: Sequence[ScoreRow], part: str | None) -> str:
    mine = [row for row in rows if row.part == part]
    found = {(row.model, row.metric): row for row in mine}
    metrics = [name for name in TITLES if any(row.metric == name for row in mine)]
    models = model_order([row.model for row in mine])
    lines = [[model_title(model), *(_cell(found.get((model, name))) for name in metrics)] for model in models]
    positive = f", {mine[0].num_positive} positive" if mine[0].num_positive is not None else ""
    size = f"n = {mine[0].n}{positive}{PARTS[part]}; value [95 % interval]"
    return f"{size}:\n\n{table(['model', *(TITLES[name] for name in metrics)], lines)}{_reasons(mine)}"


def _reasons(rows: Sequence[ScoreRow]) -> str:
    said = {row.reason: None for row in rows if row.model == MODEL and row.reason}
    return "".join(f"\n\n*Of the {model_title(MODEL)}: {reason}.*" for reason in said)


def _cell(row: ScoreRow | None) -> str:
    if row is None:
        return ""
    return f"{number(row.value)} {bounds(row)}".strip()


def _line(run: RunFiles, rows: Sequence[ScoreRow], task: str) -> list[str]:
    mine = [row for row in rows if row.task == task and row.part in (None, "all")]
    metric = "auroc" if mine[0].part is None else "token_f1"
    shown = [row for row in mine if row.metric == metric]
    ours = next((row for row in shown if row.model == MODEL), None)
    constants = sorted(_constants(shown), key=lambda row: row.value or 0.0)
    best = f"{number(constants[-1].value)} ({model_title(constants[-1].model).lower()})" if constants else ""
    return [task_title(run, task), mine[0].role, str(mine[0].n), TITLES[metric], _cell(ours), best]


def _constants(rows: Sequence[ScoreRow]) -> Iterator[ScoreRow]:
    return (row for row in rows if is_constant(row.model))
