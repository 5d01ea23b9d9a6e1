"""A comparison's tables for terminal and Markdown: ours beside the paper's and the trivial predictors.

Published numbers are other people's, on other data, from single runs: they stand beside ours, not against them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from medfed.report.names import MISSING, Published, is_constant, model_order, model_title, number, paper_task, published

Comparison = Mapping[str, Any]
COLUMNS = (
    ("auroc", "AUROC"),
    ("balanced_accuracy", "balanced accuracy"),
    ("accuracy", "accuracy"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("f1", "F1"),
    ("token_f1", "token F1"),
    ("exact_match", "exact match"),
    ("bleu1", "BLEU-1"),
    ("rouge_l", "ROUGE-L"),
)

WHOLE = (None, "all")
"""Parts of the questions that mean all of them."""
COMPARED = ("auroc", "token_f1")
"""Metrics whose differences are listed."""
EVERYWHERE = {"Best of all methods", "Federated-only"}
"""Published rows that stand beside any method's."""
METHOD, BACKBONE = "method", "backbone"
"""Axes of a sweep whose values are the paper's names of rows and columns."""


def comparison_table(comparison: Comparison) -> Table:
    """Return the AUROC of every cell's injected LLM, and of the baselines, for the terminal; intervals of the means."""
    rows = [row for row in comparison["rows"] if row["metric"] == "auroc" and not is_constant(row["model"])]
    tasks = sorted(dict.fromkeys(row["task"] for row in rows), key=lambda task: not _is_mean(task))
    title = f"{comparison['name']}: AUROC, mean over seeds [95 % CI]"
    table = Table(
        Column("", no_wrap=True), title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for task in tasks:
        table.add_column(Text(_task_title(task)), justify="right", no_wrap=True)
    for name, by_task in _lines(comparison, rows, "task"):
        cells = (_cell(by_task.get(task), interval=_is_mean(task)) for task in tasks)
        table.add_row(Text(name, no_wrap=True), *map(Text, cells))
    return table


def markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown: a table per task, then the differences."""
    lines = [f"# {comparison['name']}", "", comparison.get("description", ""), ""]
    seeds = sorted({seed for own in comparison["seeds"].values() for seed in own})
    lines += [
        f"Means over the seeds {', '.join(map(str, seeds))}; in brackets 95 % intervals over seeds and patients.",
        "",
    ]
    for task in dict.fromkeys(row["task"] for row in comparison["rows"] if row["part"] in WHOLE):
        lines += task_section(comparison, task)
    return "\n".join([*lines, *_difference_section(comparison)]) + "\n"


def paper_rows(comparison: Comparison, task: str) -> list[tuple[str, dict[str, float]]]:
    """Return (title, metric → value) of the published rows that belong beside the comparison's cells on ``task``.

    Those are, from the tables the sweep names, the rows of the cells' methods and backbones, the best of all methods
    where only that is printed, the same group's federated models, and constant answers on their test sets.
    """
    cells = comparison.get("cells", {}).values()
    methods = {values.get(METHOD, "FedKIM") for values in cells} | EVERYWHERE
    backbones = {values.get(BACKBONE, "FedAvg") for values in cells} | {""}
    rows: dict[str, dict[str, float]] = {}
    for row in published():
        constant = not row.backbone
        wanted = constant or (row.method in methods and row.backbone in backbones)
        if row.task == paper_task(task) and wanted and (constant or _place(row) in comparison.get("paper", ())):
            title = f"{row.method}, {row.source}" if constant else f"{row.method}, {row.backbone}, {row.source}"
            rows.setdefault(title, {})[row.metric] = row.value
    return list(rows.items()) if comparison.get("paper") else []


def _place(row: Published) -> str:
    """The table or figure: what follows the last comma of the source."""
    return row.source.rpartition(", ")[2]


def task_section(comparison: Comparison, task: str) -> list[str]:
    """Return the Markdown lines of one task: a heading, and a table of every model beside what was published."""
    rows = [row for row in comparison["rows"] if row["task"] == task and row["part"] in WHOLE]
    columns = [(metric, title) for metric, title in COLUMNS if any(row["metric"] == metric for row in rows)]
    lines = [f"## {_task_title(task)} (n = {rows[0]['n']})", "", _line(["", *(title for _, title in columns)])]
    lines.append(_line(["---", *["--:"] * len(columns)]))
    for title, by_metric in _lines(comparison, rows, "metric"):
        lines.append(_line([title, *(_cell(by_metric.get(metric)) for metric, _ in columns)]))
    for title, values in paper_rows(comparison, task):
        lines.append(_line([f"*{title}*", *(number(values.get(metric)) for metric, _ in columns)]))
    return [*lines, ""]


def _lines(
    comparison: Comparison, rows: Sequence[Mapping[str, Any]], key: str
) -> Iterator[tuple[str, dict[str, Mapping[str, Any]]]]:
    """Yield (title, key → row) by label and model, constants last; what several labels share comes once."""
    table: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        table.setdefault((row["label"], row["model"]), {})[row[key]] = row
    order = model_order([model for _, model in table])
    shared: dict[tuple[str, str], list[str]] = {}
    for (label, model), by_key in table.items():
        values = str([(name, row["per_seed"]) for name, row in sorted(by_key.items())])
        shared.setdefault((model, label if model == "fedkim" else values), []).append(label)
    for (model, _), labels in sorted(shared.items(), key=lambda item: order.index(item[0][0])):
        yield _title(comparison, model, labels), table[labels[0], model]


def _title(comparison: Comparison, model: str, labels: Sequence[str]) -> str:
    """The cell's label for its injected LLM; for another model, the axis values common to the cells that share it."""
    if model == "fedkim":
        return labels[0]
    cells = comparison.get("cells", {})
    if len(labels) == len(comparison["labels"]):
        return model_title(model)
    common = [v for axis, v in cells.get(labels[0], {}).items() if all(cells[name].get(axis) == v for name in labels)]
    return f"{model_title(model)} ({' · '.join(common) if len(labels) > 1 else labels[0]})"


def _difference_section(comparison: Comparison) -> list[str]:
    rows = [
        row
        for row in comparison["differences"]
        if row["metric"] in COMPARED and row["part"] in WHOLE and row["value"] is not None
    ]
    if not rows:
        return []
    lines = [
        "## Differences of AUROC, and of token F1 where answers are words",
        "",
        _line(["model", "against", "task", "difference", "p", "p (Holm)"]),
    ]
    lines.append(_line(["---", "---", "---", "--:", "--:", "--:"]))
    for row in rows:
        against = f"{model_title(row['baseline_model'])} ({row['baseline_label']})"
        star = " \\*" if row["significant"] else ""
        value = f"{number(row['value'], signed=True)} {_bounds(row, signed=True)}{star}"
        p_values = [number(row["p"]), number(row["p_holm"])]
        lines.append(_line([row["label"], against, _task_title(row["task"]), value, *p_values]))
    note = "\\* p < 0.05 after Holm's correction over all differences of the metric, with at least five seeds."
    return [*lines, "", note]


def _cell(row: Mapping[str, Any] | None, *, interval: bool = True) -> str:
    if row is None or row["value"] is None:
        return MISSING
    return f"{number(row['value'])}{'*' if row['single_class'] else ''} {_bounds(row) if interval else ''}".strip()


def _bounds(row: Mapping[str, Any], *, signed: bool = False) -> str:
    if row["ci_low"] is None:
        return ""
    return f"[{number(row['ci_low'], 2, signed=signed)}, {number(row['ci_high'], 2, signed=signed)}]"


def _task_title(task: str) -> str:
    return task.replace("-", " of ") if _is_mean(task) else task.upper()


def _is_mean(task: str) -> bool:
    return task.startswith("mean-")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
