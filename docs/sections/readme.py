"""Sections of the README from comparisons over seeds: the means of the headline, and the real extracts."""

from __future__ import annotations

from sections import controls, verdict
from sections.comparison import Results, printed, table, task_title
from sections.tables import closed_table

MODELS = ("federated", "centralised")


def headline(results: Results) -> str:
    """The verdicts, AUROC over seeds with the first algorithm of the sweep, and the controls of its first method."""
    methods = next(iter(results.backbones.values()))
    first = next(iter(methods.values()))
    verdicts = "\n".join(verdict.short(verdict.answers(results)))
    parts = [results.seeds(), verdicts, closed_table(results, methods, "auroc", MODELS)]
    return "\n\n".join([*parts, controls.section(results, first)])


def real(results: Results) -> str:
    """The verdict over the controls, n and balanced accuracy of the study of real extracts, and every control."""
    (label,) = results.typed.labels
    lines = []
    for role in ("trained", "unseen"):
        for task in results.tasks(role):
            ours, federated = (results.row(label, model, task, "auroc") for model in ("fedkim", "federated"))
            if ours is not None:
                mark = " (unseen)" if role == "unseen" else ""
                balanced = results.row(label, "fedkim", task, "balanced_accuracy")
                lines.append([task_title(task) + mark, str(ours.n), *map(printed, (ours, federated, balanced))])
    head = ["task", "n", "AUROC: injected LLM", "AUROC: federated only", "balanced accuracy: injected LLM"]
    reported = verdict.short([answer for answer in [verdict.over_all_controls(results)] if answer.lines])
    parts = [results.seeds(), *(["\n".join(reported)] if reported else []), table(head, lines)]
    return "\n\n".join([*parts, controls.section(results, label)])
