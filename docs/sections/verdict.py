"""What was asked of the injected LLM, and what the comparison answers, line by line.

A line is reached by the mean over seeds; whether the interval says so too stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medfed.report.compared import ComparedDifference
from medfed.report.names import MISSING, number

from sections.comparison import Results, shown, table, task_title

MARGIN = -0.005
"""AUROC that the injected LLM may lose against the federated-only model on a trained task."""
ORDER = ("FedKIM", "FedPlug_L", "FedPlug")
CHANCE = 0.5


@dataclass(frozen=True)
class Answer:
    """A question, its verdict lines, and the table that they are read from."""

    question: str
    lines: Sequence[str]
    table: str


def verdict(results: Results) -> str:
    """All questions: first every verdict, then the numbers."""
    found = answers(results)
    text = [results.seeds(), "", *short(found)]
    for answer in found:
        text += ["", f"### {answer.question}", "", answer.table]
    return "\n".join(text)


def answers(results: Results) -> list[Answer]:
    """The questions that the comparison can answer."""
    asked: tuple[Callable[[Results], Answer], ...] = (
        against_federated,
        order_of_methods,
        above_chance,
        against_constants,
        open_answers,
    )
    return [answer for answer in (ask(results) for ask in asked) if answer.lines]


def short(found: Sequence[Answer]) -> list[str]:
    """A bullet per question, under it one per verdict line."""
    return [text for answer in found for text in (f"- {answer.question}", *(f"  - {line}" for line in answer.lines))]


def against_federated(results: Results) -> Answer:
    """FedKIM's AUROC against the same federation without an LLM, on the trained tasks."""
    lines, cells = [], []
    for name, label in _fedkim(results):
        gaps = {task: results.gap((label, label), "federated", task, "auroc") for task in results.tasks("trained")}
        found = {task: gap for task, gap in gaps.items() if gap is not None and gap.value is not None}
        missed = [f"{task_title(task)} ({shown(gap, signed=True)})" for task, gap in found.items() if not _kept(gap)]
        if found:
            where = f" on {', '.join(missed)}" if missed else ""
            sure = sum(gap.ci_low is not None and gap.ci_low >= MARGIN for gap in found.values())
            text = (
                f"At least {number(MARGIN)} on every trained task: {reached(not missed)}{where}; the whole interval is"
            )
            lines.append(_joined(name, f"{text} on {sure} of {len(found)}."))
        mean = results.gap((label, label), "federated", "mean-trained", "auroc")
        for task, gap in found.items():
            cells.append([task_title(task), name, *_tested(gap), f"at least {number(MARGIN)}: {reached(_kept(gap))}"])
            cells[-1].append(yes(gap.ci_low is not None and gap.ci_low >= MARGIN))
        if mean is not None and mean.value is not None:
            ok = mean.value > 0
            lines.append(_joined(name, f"Mean above 0: {reached(ok)} ({shown(mean, signed=True)})."))
            cells.append([task_title("mean-trained"), name, *_tested(mean), f"above 0: {reached(ok)}"])
            cells[-1].append(yes(mean.ci_low is not None and mean.ci_low > 0))
    head = ["task", "algorithm", "FedKIM − federated only", "p", "p (Holm)", "wanted", "whole interval"]
    question = "Is the injected LLM's AUROC as good as that of the federation that feeds it?"
    return Answer(question, lines, table(head, cells))


def order_of_methods(results: Results) -> Answer:
    """FedKIM > FedPlug_L > FedPlug on the mean AUROC of the unseen closed tasks."""
    lines, cells = [], []
    for name, methods in results.backbones.items():
        found = [results.row(methods.get(m, ""), "fedkim", "mean-unseen", "auroc") for m in ORDER]
        rows = [row for row in found if row is not None]
        values = [row.value for row in rows if row.value is not None]
        if len(values) < len(ORDER):
            continue
        cells += [[m, name, shown(row), MISSING] for m, row in zip(ORDER, rows, strict=True)]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            gap = results.gap((methods[ORDER[a]], methods[ORDER[b]]), "fedkim", "mean-unseen", "auroc")
            wins = _wins(rows[a].per_seed, rows[b].per_seed)
            value = shown(gap, signed=True) if gap else number(values[a] - values[b], signed=True)
            cells.append([f"{ORDER[a]} − {ORDER[b]}", name, value, wins])
        said = " > ".join(ORDER)
        printed = ", ".join(f"{m} {number(value)}" for m, value in zip(ORDER, values, strict=True))
        ok = values[0] > values[1] > values[2]
        gap = results.gap((methods[ORDER[0]], methods[ORDER[1]]), "fedkim", "mean-unseen", "auroc")
        apart = f"; {ORDER[0]} − {ORDER[1]}: {shown(gap, signed=True)}" if gap else ""
        lines.append(_joined(name, f"{said}: {reached(ok)} ({printed}{apart})."))
    head = ["method", "algorithm", "mean AUROC of the unseen closed tasks", "seeds at which it is higher"]
    return Answer("Does each way to inject beat the simpler one on unseen tasks?", lines, table(head, cells))


def above_chance(results: Results) -> Answer:
    """FedKIM's mean unseen AUROC interval against 0.5, and every unseen task's."""
    lines, cells = [], []
    for name, label in _fedkim(results):
        for task in (*results.tasks("unseen"), "mean-unseen"):
            row = results.row(label, "fedkim", task, "auroc")
            if row is None or row.value is None:
                continue
            ok = row.ci_low is not None and row.ci_low > CHANCE
            cells.append([task_title(task), name, shown(row), yes(ok)])
            if task == "mean-unseen":
                lines.append(_joined(name, f"Interval of the mean above {CHANCE}: {reached(ok)} ({shown(row)})."))
    head = ["task", "algorithm", "AUROC", "interval above 0.5"]
    return Answer("Is the injected LLM better than chance on tasks it never met?", lines, table(head, cells))


def against_constants(results: Results) -> Answer:
    """FedKIM's balanced accuracy against the better of always yes and always no, on every closed task."""
    lines, cells = [], []
    for name, label in _fedkim(results):
        missed, sure = [], 0
        tasks = results.tasks("trained") + results.tasks("unseen")
        for task in tasks:
            row = results.row(label, "fedkim", task, "balanced_accuracy")
            constant = results.best_constant(label, task, "balanced_accuracy")
            if row is None or row.value is None or constant is None or constant.value is None:
                missed.append(f"{task_title(task)} (not measured)")
                continue
            ok = row.value > constant.value
            surely = row.ci_low is not None and row.ci_low > constant.value
            sure += surely
            missed += [] if ok else [f"{task_title(task)} ({shown(row)})"]
            cells.append([task_title(task), name, shown(row), number(constant.value), reached(ok)])
            cells[-1].append(yes(surely))
        where = f" on {', '.join(missed)}" if missed else ""
        text = f"On every closed task: {reached(not missed)}{where}; the whole interval is above on"
        lines.append(_joined(name, f"{text} {sure} of {len(tasks)}."))
    head = ["task", "algorithm", "balanced accuracy", "best constant", "beaten", "whole interval"]
    return Answer("Does it beat every constant answer on balanced accuracy?", lines, table(head, cells))


def open_answers(results: Results) -> Answer:
    """Token F1 of answers in words against the best constant answer, which is chosen with the references known."""
    lines, cells = [], []
    for name, label in _fedkim(results):
        for task in results.tasks("unseen", is_closed=False) + results.tasks("trained", is_closed=False):
            row = results.row(label, "fedkim", task, "token_f1", "all")
            constant = results.row(label, "constant-best", task, "token_f1", "all")
            gap = results.gap((label, label), "constant-best", task, "token_f1", "all")
            if row is None or constant is None or row.value is None or constant.value is None:
                continue
            ok = row.value > constant.value
            surely = gap is not None and gap.ci_low is not None and gap.ci_low > 0
            difference = shown(gap, signed=True)
            cells.append([task_title(task), name, shown(row), shown(constant), difference, reached(ok)])
            cells[-1].append(yes(surely))
            lines.append(_joined(name, f"{task_title(task)}: {reached(ok)} ({difference})."))
    head = ["task", "algorithm", "token F1", "best constant answer", "difference", "beaten", "whole interval"]
    return Answer("Do its answers in words beat the best constant answer on token F1?", lines, table(head, cells))


def reached(ok: bool) -> str:
    """The verdict in words."""
    return "**reached**" if ok else "**not reached**"


def yes(ok: bool) -> str:
    """Whether something holds, in a table."""
    return "yes" if ok else "no"


def _kept(gap: ComparedDifference) -> bool:
    return gap.value is not None and gap.value >= MARGIN


def _tested(gap: ComparedDifference) -> list[str]:
    return [shown(gap, signed=True), number(gap.p), number(gap.p_holm)]


def _fedkim(results: Results) -> list[tuple[str, str]]:
    """(backbone, label) of every cell of the method FedKIM."""
    found = [(name, methods[ORDER[0]]) for name, methods in results.backbones.items() if ORDER[0] in methods]
    return found or [("", results.typed.labels[0])]


def _joined(name: str, text: str) -> str:
    return f"{name}. {text}" if name else text


def _wins(a: Sequence[float | None], b: Sequence[float | None]) -> str:
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return f"{sum(x > y for x, y in pairs)} of {len(pairs)}"
