"""Sections of the README from comparisons over seeds: the means of the headline, and the real extracts."""

from __future__ import annotations

from medfed.evaluation.controls import COUNT, LORA, NEAREST
from medfed.report.models import model_title
from sections import verdict
from sections.comparison import Results, printed, table, task_title
from sections.tables import closed_table

MODELS = ("federated", "centralised", NEAREST, COUNT, LORA)


def headline(results: Results) -> str:
    """AUROC over seeds with the first algorithm of the sweep, then the verdicts."""
    methods = next(iter(results.backbones.values()))
    lines = [results.seeds(), "", closed_table(results, methods, "auroc", MODELS), ""]
    return "\n".join([*lines, *verdict.short(verdict.answers(results))])


def real(results: Results) -> str:
    """n, AUROC and balanced accuracy of the study of real extracts."""
    (label,) = results.typed.labels
    compared = ["federated", *(model for model in (NEAREST, COUNT) if model in results.models)]
    head = ["task", "n", "AUROC: injected LLM", *(f"AUROC: {model_title(model).lower()}" for model in compared)]
    head.append("balanced accuracy: injected LLM")
    lines = []
    for role in ("trained", "unseen"):
        for task in results.tasks(role):
            ours, *others = (results.row(label, model, task, "auroc") for model in ("fedkim", *compared))
            if ours is not None:
                mark = " (unseen)" if role == "unseen" else ""
                balanced = results.row(label, "fedkim", task, "balanced_accuracy")
                lines.append([task_title(task) + mark, str(ours.n), *map(printed, (ours, *others, balanced))])
    return f"{results.seeds()}\n\n{table(head, lines)}"
