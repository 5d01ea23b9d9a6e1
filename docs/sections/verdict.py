"""The claims on the injected LLM, and the comparison's verdict on each: supported, not distinguishable, contradicted.

A verdict rests on the interval alone; the means over seeds stand in the tables below it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medfed.evaluation.verdict import Verdict, above, above_chance, all_of, better, over_controls
from medfed.records.schema import ComparedDifference
from medfed.report.models import model_title
from medfed.report.results import over_in_words, part_title, tally
from medfed.report.text import MISSING, number
from sections.comparison import Results, printed, table, task_title
from sections.controls import leading

MARGIN = 0.005
"""AUROC that the injected LLM may lose against the federated-only model on a trained task."""
OURS, ORDER = "medfed", ("FedKIM", "FedPlug_L", "FedPlug")
"""The method with medfed's recipe, and the paper's with the paper's."""
CHANCE = 0.5


@dataclass(frozen=True)
class Answer:
    """A question, its verdict lines, and the table that they are read from."""

    question: str
    lines: Sequence[str]
    table: str


def verdict(results: Results) -> str:
    """All questions: first every verdict, then the numbers."""
    given = answers(results)
    text = [results.seeds(), "", *short(given)]
    for answer in given:
        text += ["", f"### {answer.question}", "", answer.table]
    return "\n".join(text)


def answers(results: Results) -> list[Answer]:
    """The questions that the comparison can answer."""
    questions: tuple[Callable[[Results], Answer], ...] = (
        against_federated,
        order_of_methods,
        above_chance_level,
        against_constants,
        open_answers,
        over_all_controls,
    )
    return [answer for answer in (question(results) for question in questions) if answer.lines]


def short(given: Sequence[Answer]) -> list[str]:
    """A bullet per question, under it one per verdict line."""
    return [text for answer in given for text in (f"- {answer.question}", *(f"  - {line}" for line in answer.lines))]


def against_federated(results: Results) -> Answer:
    """The injected LLM's AUROC against the same federation without an LLM, on the trained tasks."""
    lines, cells = [], []
    for name, label in _judged(results):
        gaps = {task: results.gap((label, label), "federated", task, "auroc") for task in results.tasks("trained")}
        held = {task: gap for task, gap in gaps.items() if gap is not None and gap.value is not None}
        if held:
            verdicts = [better(gap, MARGIN) for gap in held.values()]
            claim = f"It loses less than {number(MARGIN)}, trained task by trained task"
            lines.append(_joined(name, f"{claim}: {tally(verdicts)}."))
            cells += [
                [task_title(task), name, *_tested(gap), f"> {number(-MARGIN)}", word]
                for (task, gap), word in zip(held.items(), verdicts, strict=True)
            ]
        mean = results.gap((label, label), "federated", "mean-trained", "auroc")
        if mean is not None and mean.value is not None:
            lines.append(_joined(name, f"Its mean is higher: {bold(better(mean))} ({printed(mean, signed=True)})."))
            cells.append([task_title("mean-trained"), name, *_tested(mean), "> 0", better(mean)])
    head = ["task", "algorithm", "injected LLM − federated only", "p", "p (Holm)", "claim", "verdict"]
    question = "Is the injected LLM's AUROC as good as that of the federation that feeds it?"
    return Answer(question, lines, table(head, cells))


def order_of_methods(results: Results) -> Answer:
    """medfed > FedKIM, and FedKIM > FedPlug_L > FedPlug, on the mean AUROC of the unseen closed tasks."""
    lines, cells = [], []
    for name, methods in results.backbones.items():
        held = [results.row(methods.get(m, ""), "fedkim", "mean-unseen", "auroc") for m in ORDER]
        rows = [row for row in held if row is not None and row.value is not None]
        if len(rows) < len(ORDER):
            continue
        if (ours := results.row(methods.get(OURS, ""), "fedkim", "mean-unseen", "auroc")) is not None:
            gap = _gap(results, methods[OURS], methods[ORDER[0]])
            word, value = "not distinguishable" if gap is None else better(gap), printed(gap, signed=True)
            cells.append([OURS, name, printed(ours), MISSING, MISSING])
            cells.append([f"{OURS} − {ORDER[0]}", name, value, _wins(ours.per_seed, rows[0].per_seed), word])
            lines.append(_joined(name, f"{OURS} > {ORDER[0]}: {bold(word)} ({value})."))
        cells += [[m, name, printed(row), MISSING, MISSING] for m, row in zip(ORDER, rows, strict=True)]
        steps = []
        for a, b in ((0, 1), (1, 2), (0, 2)):
            gap = _gap(results, methods[ORDER[a]], methods[ORDER[b]])
            word = "not distinguishable" if gap is None else better(gap)
            wins = _wins(rows[a].per_seed, rows[b].per_seed)
            value = printed(gap, signed=True) if gap else number(rows[a].value - rows[b].value, signed=True)
            cells.append([f"{ORDER[a]} − {ORDER[b]}", name, value, wins, word])
            steps.append((word, f"{ORDER[a]} > {ORDER[b]} {word} ({value})"))
        whole = all_of([word for word, _ in steps[:2]])
        listed = "; ".join(text for _, text in steps[:2])
        lines.append(_joined(name, f"{' > '.join(ORDER)}: {bold(whole)}. {listed}."))
    head = ["method", "algorithm", "mean AUROC of the unseen closed tasks", "seeds at which it is higher", "verdict"]
    return Answer("Does each way to inject beat the simpler one on unseen tasks?", lines, table(head, cells))


def above_chance_level(results: Results) -> Answer:
    """The injected LLM's AUROC against 0.5 on unseen tasks; one answer for everybody is never above chance."""
    lines, cells = [], []
    for name, label in _judged(results):
        verdicts = []
        for task in (*results.tasks("unseen"), "mean-unseen"):
            row = results.row(label, "fedkim", task, "auroc")
            if row is None or row.value is None:
                continue
            word = above_chance(row, CHANCE)
            cells.append([task_title(task), name, printed(row), word])
            if task == "mean-unseen":
                lines.append(_joined(name, f"The mean is above {CHANCE}: {bold(word)} ({printed(row)})."))
            else:
                verdicts.append(word)
        if verdicts:
            lines.append(_joined(name, f"Task by task above {CHANCE}: {tally(verdicts)}."))
    head = ["task", "algorithm", "AUROC", "above 0.5"]
    return Answer("Is the injected LLM better than chance on tasks it never met?", lines, table(head, cells))


def against_constants(results: Results) -> Answer:
    """The injected LLM's balanced accuracy against the better of always yes and always no, on every closed task."""
    lines, cells = [], []
    for name, label in _judged(results):
        verdicts = []
        for task in results.tasks("trained") + results.tasks("unseen"):
            row = results.row(label, "fedkim", task, "balanced_accuracy")
            constant = results.best_constant(label, task, "balanced_accuracy")
            if row is not None and row.value is not None and constant is not None and constant.value is not None:
                verdicts.append(above_chance(row, constant.value))
                cells.append([task_title(task), name, printed(row), number(constant.value), verdicts[-1]])
        if verdicts:
            lines.append(_joined(name, f"Closed task by closed task: {tally(verdicts)}."))
    head = ["task", "algorithm", "balanced accuracy", "best constant", "above it"]
    return Answer("Does it beat every constant answer on balanced accuracy?", lines, table(head, cells))


def open_answers(results: Results) -> Answer:
    """Token F1 of open questions against the best constant answer, which is chosen with the references known."""
    lines, cells = [], []
    for name, label in _judged(results):
        for task in results.tasks("unseen", is_closed=False) + results.tasks("trained", is_closed=False):
            row = results.row(label, "fedkim", task, "token_f1", "open")
            constant = results.row(label, "constant-best", task, "token_f1", "open")
            if row is None or constant is None or row.value is None or constant.value is None:
                continue
            gap = results.gap((label, label), "constant-best", task, "token_f1", "open")
            word = above(row, constant.value) if gap is None else better(gap)
            difference = printed(gap, signed=True)
            cells.append([task_title(task), name, printed(row), printed(constant), difference, word])
            lines.append(_joined(name, f"{task_title(task)}: {bold(word)} ({difference})."))
    head = ["task", "algorithm", "token F1", "best constant answer", "difference", "verdict"]
    return Answer(
        "Do its answers to open questions beat the best constant answer on token F1?", lines, table(head, cells)
    )


def over_all_controls(results: Results) -> Answer:
    """Whether the LLM is better than every control, task by task; the controls it loses to, with the differences."""
    lines, cells = [], []
    for name, label in _judged(results):
        held = over_controls(leading(results, label))
        if held is None:
            continue
        lines.append(_joined(name, f"Task by task {over_in_words(held, task_title)}"))
        for (task, part), gaps in held.lost.items():
            title = f"{task_title(task)}{part_title(part)}"
            cells += [[title, name, model_title(gap.baseline_model), *_tested(gap)] for gap in gaps]
    head = ["task", "algorithm", "control", "injected LLM − control", "p", "p (Holm)"]
    return Answer("Is it better than every control?", lines, table(head, cells) if cells else "It loses to none.")


def bold(word: Verdict) -> str:
    """A verdict that stands out."""
    return f"**{word}**"


def _gap(results: Results, first: str, second: str) -> ComparedDifference | None:
    return results.gap((first, second), "fedkim", "mean-unseen", "auroc")


def _tested(gap: ComparedDifference) -> list[str]:
    return [printed(gap, signed=True), number(gap.p), number(gap.p_holm)]


def _judged(results: Results) -> list[tuple[str, str]]:
    """(backbone and method, label) of every cell of medfed and of FedKIM; the method is named where both are there."""
    held = [
        (", ".join(filter(None, (name, method * (len({OURS, ORDER[0]} & methods.keys()) > 1)))), methods[method])
        for name, methods in results.backbones.items()
        for method in (OURS, ORDER[0])
        if method in methods
    ]
    return held or [("", results.typed.labels[0])]


def _joined(name: str, text: str) -> str:
    return f"{name}. {text}" if name else text


def _wins(a: Sequence[float | None], b: Sequence[float | None]) -> str:
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return f"{sum(x > y for x, y in pairs)} of {len(pairs)}"
