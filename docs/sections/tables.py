"""Tables of values: all models on all closed tasks, answers in words, and the paper's numbers with ours."""

from __future__ import annotations

from collections.abc import Sequence

from medfed.evaluation.controls import BOUNDS, JUDGED
from medfed.records.schema import ComparedRow
from medfed.report.comparison import task_section
from medfed.report.models import is_constant, model_title
from medfed.report.published import paper_rows
from medfed.report.text import number
from sections import controls
from sections.comparison import Results, printed, table, task_title

MODELS = ("heads", "federated", "centralised", "local")
"""Models next to the injected LLM; ``heads`` are those of the encoders that the LLM reads. Controls have own tables."""
METRICS = {"auroc": "AUROC", "balanced_accuracy": "Balanced accuracy"}
TEXT_METRICS = {"token_f1": "token F1", "exact_match": "exact match", "bleu1": "BLEU-1", "rouge_l": "ROUGE-L"}
PARTS = {"open": "in words", "closed": "yes or no"}
PAPER_METRICS = ("accuracy", "balanced_accuracy", "precision", "recall", "f1")


def headline(results: Results) -> str:
    """AUROC and balanced accuracy of every method and every model without an LLM, and the controls, per algorithm."""
    text = [results.seeds()]
    for backbone, methods in results.backbones.items():
        where = f", {backbone}" if backbone else ""
        for metric, title in METRICS.items():
            text += ["", f"### {title}{where}", "", closed_table(results, methods, metric)]
        for method, label in methods.items():
            if controls.of_label(results, label).has_controls:
                text += ["", f"### Controls of {method}{where}", "", controls.section(results, label)]
    if not any(controls.of_label(results, label).has_controls for label in results.typed.labels):
        text += ["", controls.NO_CONTROLS]
    return "\n".join(text)


def closed_table(results: Results, methods: dict[str, str], metric: str, models: Sequence[str] = MODELS) -> str:
    """A line per closed task and mean, a column per method and model."""
    first = next(iter(methods.values()))
    held = [model for model in models if any(row.model == model for row in results.typed.rows)]
    head = ["task", *methods, *map(model_title, held), "best constant"]
    lines = []
    for role in ("trained", "unseen"):
        for task in (*results.tasks(role), f"mean-{role}"):
            rows = [results.row(label, "fedkim", task, metric) for label in methods.values()]
            if any(rows):
                rows += [results.row(first, model, task, metric) for model in held]
                constant = results.best_constant(first, task, metric)
                mark = " (unseen)" if role == "unseen" and not task.startswith("mean-") else ""
                lines.append([task_title(task) + mark, *map(printed, rows), printed(constant, with_interval=False)])
    return table(head, lines)


def open_table(results: Results) -> str:
    """Answers in words: every text metric by part of the questions, for the injected LLM and the constants.

    The most frequent answer has no line where it is the best one.
    """
    label = results.typed.labels[0]
    lines: list[list[str]] = []
    for task in results.tasks("trained", is_closed=False) + results.tasks("unseen", is_closed=False):
        for part, title in PARTS.items():
            for model in ("fedkim", "constant-best", "constant-frequent"):
                rows = [results.row(label, model, task, metric, part) for metric in TEXT_METRICS]
                cells = list(map(printed, rows))
                again = model == "constant-frequent" and bool(lines) and lines[-1][-len(cells) :] == cells
                if not again and any(row is not None and row.value is not None for row in rows):
                    lines.append([task_title(task), title, model_title(model), _count(rows), *cells])
    ours = table(["task", "questions", "model", "n", *TEXT_METRICS.values()], lines)
    theirs = _open_published(results, label)
    return "\n".join(
        [results.seeds([label]), "", ours, *(["", "BLEU-1 with the paper's:", "", theirs] if theirs else [])]
    )


def _open_published(results: Results, label: str) -> str:
    """BLEU-1 of all questions: ours, the best constant answer on ours, and what was published; empty without either."""
    lines = []
    for task in results.tasks("unseen", is_closed=False):
        published = paper_rows(results.typed.model_copy(update={"paper": ("Figure 2",)}), task)
        if published:
            for model in ("fedkim", "constant-best"):
                row = results.row(label, model, task, "bleu1", "all")
                lines.append([task_title(task), model_title(model), printed(row)])
        lines += [[task_title(task), f"*{row.title}*", number(row.values.get("bleu1"))] for row in published]
    return table(["task", "model", "BLEU-1"], lines) if lines else ""


def real_table(results: Results) -> str:
    """The study of one cell: AUROC against the federated-only model, balanced accuracy, constants, every control."""
    (label,) = results.typed.labels
    head = ["task", "n", "AUROC: injected LLM", "AUROC: federated only", "difference"]
    head += ["balanced accuracy: injected LLM", "balanced accuracy: federated only", "best constant"]
    lines = []
    for role in ("trained", "unseen"):
        for task in (*results.tasks(role), f"mean-{role}"):
            auroc = [results.row(label, model, task, "auroc") for model in ("fedkim", "federated")]
            balanced = [results.row(label, model, task, "balanced_accuracy") for model in ("fedkim", "federated")]
            gap = results.gap((label, label), "federated", task, "auroc")
            constant = results.best_constant(label, task, "balanced_accuracy")
            if auroc[0] is not None:
                mark = " (unseen)" if role == "unseen" and not task.startswith("mean-") else ""
                line = [task_title(task) + mark, _count(auroc), *map(printed, auroc), printed(gap, signed=True)]
                lines.append([*line, *map(printed, balanced), printed(constant, with_interval=False)])
    return f"{table(head, lines)}\n\n{controls.section(results, label)}"


def paper_tables(results: Results, place: str, role: str) -> str:
    """Our cells, their controls and constants with the numbers of one of the paper's tables."""
    rows = tuple(
        row
        for row in results.typed.rows
        if row.metric in PAPER_METRICS
        and (row.model in ("fedkim", *JUDGED, *BOUNDS) or is_constant(row.model))
        and row.role == role
        and not row.task.startswith("mean-")
        and row.part is None
    )
    chosen = results.typed.model_copy(update={"rows": rows, "paper": (place,)})
    text = [f"### {place}: {role} tasks", "", results.seeds()]
    for task in dict.fromkeys(row.task for row in rows):
        heading, lines = task_section(chosen, task)
        text += ["", heading.replace("## ", "#### "), "", lines]
    return "\n".join(text)


def _count(rows: Sequence[ComparedRow | None]) -> str:
    return str(max((row.n for row in rows if row is not None), default=0))
