"""The report's tables: the headline (injected LLM, federated-only, constant), all metrics, and the terminal summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from medfed.evaluation.metrics import METRICS
from medfed.report.figures import Scale, interval_scale, interval_track
from medfed.report.names import (
    MISSING,
    Published,
    bounds,
    is_constant,
    model_order,
    model_style,
    model_title,
    number,
    ordered,
    paper_task,
    published,
    task_title,
)
from medfed.report.open_questions import summary_lines
from medfed.report.read import RunFiles, read_run
from medfed.report.records import ScoreRow
from medfed.report.verdict import Verdict, trained_verdicts, unseen_verdicts

REPEATED = ("Table 4", "Table 7")
"""Ablations and single-task runs: a run's report leaves them to comparisons (:mod:`medfed.report.beside`)."""


@dataclass(frozen=True)
class Cell:
    """A printed value, its interval, and the reason if it is missing or a convention."""

    value: str
    interval: str = ""
    reason: str | None = None


@dataclass(frozen=True)
class ModelRow:
    """One model on one task."""

    title: str
    style: str
    auroc: Cell
    track: Markup
    balanced_accuracy: Cell
    single_class: bool


@dataclass(frozen=True)
class TaskBlock:
    """All models on one task, and what follows from them."""

    title: str
    num_examples: int
    size: str
    verdict: Verdict | None
    difference: str
    rows: list[ModelRow]


@dataclass(frozen=True)
class MetricRow:
    """One model's values of all metrics; ``source`` is set for published numbers."""

    title: str
    style: str
    cells: list[Cell]
    source: str = ""


@dataclass(frozen=True)
class MetricBlock:
    """All metric rows of one task, and the published ones beside them."""

    title: str
    size: str
    rows: list[MetricRow]
    published: list[MetricRow]


def task_names(run: RunFiles, role: str) -> list[str]:
    """Scored tasks of one role in the study's order."""
    return ordered(run, [row.task for row in run.scores.rows if row.role == role])


def headline_scale(run: RunFiles) -> Scale:
    """The axis shared by all tracks of the report."""
    return interval_scale([row for row in run.scores.rows if row.metric == "auroc"])


def headline(run: RunFiles, role: str) -> list[TaskBlock]:
    """One block per task of ``role``; models that lose stand as plainly as those that win."""
    verdicts = trained_verdicts(run.scores) if role == "trained" else unseen_verdicts(run.scores)
    return [_task_block(run, task, verdicts.get(task), headline_scale(run)) for task in task_names(run, role)]


def all_metrics(run: RunFiles) -> list[MetricBlock]:
    """Every model and metric by task, then the published numbers of the task of the same code."""
    blocks = []
    for task in [*task_names(run, "trained"), *task_names(run, "unseen")]:
        rows = {(row.model, row.metric): row for row in run.scores.rows if row.task == task}
        models = model_order([model for model, _ in rows])
        ours = [
            MetricRow(model_title(m), model_style(m), [metric_cell(rows.get((m, k.name))) for k in METRICS])
            for m in models
        ]
        size = size_text(list(rows.values()))
        blocks.append(MetricBlock(task_title(run, task), size, ours, _published(run, task)))
    return blocks


def missing_reasons(run: RunFiles) -> list[tuple[str, str, str, str]]:
    """(task, model, metric, reason) of every value that is null or rests on a convention, constants left out."""
    titles = {metric.name: metric.title for metric in METRICS}
    return [
        (task_title(run, row.task), model_title(row.model), titles.get(row.metric, row.metric), row.reason)
        for row in run.scores.rows
        if row.reason and not is_constant(row.model)
    ]


def published_sources(run: RunFiles) -> list[tuple[str, str, str]]:
    """(task, row, source) of every published row."""
    return [(block.title, row.title, row.source) for block in all_metrics(run) for row in block.published]


def summary_table(run: Path) -> Table:
    """Return the AUROC (open tasks: token F1) of every model on every task of the run in ``run``, for the terminal."""
    files = read_run(run)
    scored = [*files.scores.rows, *files.open_scores.rows]
    models = model_order([row.model for row in scored if not is_constant(row.model)])
    table = Table("task", "n", title=Text(f"{files.name}: AUROC [95 % CI]"), box=SIMPLE_HEAD)
    for model in models:
        table.add_column(Text(model_title(model)), justify="right")
    table.add_column("verdict")
    for role in ("trained", "unseen"):
        for block in headline(files, role):
            by_title = {row.title: row for row in block.rows}
            values = [_terminal_cell(by_title.get(model_title(model))) for model in models]
            verdict = f"{block.verdict.text} {block.difference}" if block.verdict else ""
            table.add_row(
                *map(
                    Text,
                    (
                        f"{block.title} (unseen)" if role == "unseen" else block.title,
                        str(block.num_examples),
                        *values,
                        verdict,
                    ),
                )
            )
        table.add_section()
    for line in summary_lines(files, models):
        table.add_row(*map(Text, line))
    table.caption = Text("A constant answer has 0.5. * gives every patient the same answer.")
    return table


def _terminal_cell(row: ModelRow | None) -> str:
    return f"{row.auroc.value}{'*' if row.single_class else ''} {row.auroc.interval}" if row is not None else ""


def size_text(rows: Sequence[ScoreRow]) -> str:
    """``n = 240, 61 positive``."""
    if not rows:
        return ""
    positive = f", {rows[0].num_positive} positive" if rows[0].num_positive is not None else ""
    return f"n = {rows[0].n}{positive}"


def metric_cell(row: ScoreRow | None) -> Cell:
    """Print a row's value, interval and reason."""
    return Cell(number(row.value), bounds(row), row.reason) if row is not None else Cell(MISSING)


def _task_block(run: RunFiles, task: str, verdict: Verdict | None, scale: Scale) -> TaskBlock:
    mine = [row for row in run.scores.rows if row.task == task]
    rows = {(row.model, row.metric): row for row in mine}
    models = model_order([row.model for row in mine])
    constants = [model for model in models if is_constant(model)]
    shown = [model for model in models if not is_constant(model)] + constants[:1]
    difference = ""
    if verdict is not None and verdict.row.value is None:
        difference = verdict.row.reason or ""
    elif verdict is not None and verdict.row.baseline is not None:
        difference = f"{number(verdict.row.value, signed=True)} {bounds(verdict.row, 3, signed=True)}".strip()
    return TaskBlock(
        task_title(run, task),
        mine[0].n,
        size_text(mine),
        verdict,
        difference,
        [
            _model_row(model, rows.get((model, "auroc")), rows.get((model, "balanced_accuracy")), scale)
            for model in shown
        ],
    )


def _model_row(model: str, auroc: ScoreRow | None, balanced: ScoreRow | None, scale: Scale) -> ModelRow:
    style = model_style(model)
    title = "Constant answer" if is_constant(model) else model_title(model)
    flagged = any(row is not None and row.single_class for row in (auroc, balanced))
    track = interval_track(auroc, scale, style)
    return ModelRow(title, style, metric_cell(auroc), track, metric_cell(balanced), flagged)


def _published(run: RunFiles, task: str) -> list[MetricRow]:
    backbone = _backbone(run.study.get("algorithm"))
    mine = [row for row in published() if row.task == paper_task(task) and row.backbone in ("", backbone)]
    mine = [row for row in mine if not row.source.endswith(REPEATED)]
    rows = []
    for method in dict.fromkeys(row.method for row in mine):
        values = {row.metric: row for row in mine if row.method == method}
        cells = [Cell(number(values[m.name].value)) if m.name in values else Cell("") for m in METRICS]
        rows.append(MetricRow(_method_title(next(iter(values.values()))), "published", cells, _source(values)))
    return rows


def _source(values: dict[str, Published]) -> str:
    """Where the published values of one method stand."""
    return "; ".join(dict.fromkeys(row.source for row in values.values()))


def _method_title(row: Published) -> str:
    return f"{row.method} ({row.backbone})" if row.backbone else row.method


def _backbone(algorithm: object) -> str:
    """The published column to stand beside: FedProx for FedProx, else FedAvg."""
    name = algorithm.get("name") if isinstance(algorithm, dict) else algorithm
    return "FedProx" if name == "fedprox" else "FedAvg"
