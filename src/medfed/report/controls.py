"""The section on controls, of one run and of a comparison: what could embarrass the injected LLM, and by how much.

The names are those of :mod:`medfed.evaluation.controls`. A single reused head has its difference next to its
similarity; everywhere else stand the nearest head, the mean, and the best in hindsight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table as TerminalTable
from rich.text import Text as TerminalText

from medfed.evaluation.controls import BOUNDS, JUDGED, REUSE, WORDS, WORDS_EQUAL, is_control
from medfed.evaluation.verdict import CONTRADICTED, Gap, baseline_of
from medfed.records.schema import (
    AnswerCheck,
    ComparedAnswers,
    ComparedRow,
    ComparisonFile,
    ControlFile,
    Difference,
    ScoreRow,
    WordsFile,
)
from medfed.report import html
from medfed.report.models import (
    BEST_CONSTANT,
    INJECTED,
    is_constant,
    is_single_head,
    model_order,
    model_style,
    model_title,
)
from medfed.report.results import PARTS, is_first, summary_table, verdict_on, verdict_style
from medfed.report.run import Run
from medfed.report.text import MISSING, bounds, joined, number, terminal_table

READING = "Rows are models, columns are tasks. Below a model's value stands the injected LLM's minus it,"
COLOURS = (
    "It is red where the LLM loses by the whole interval, and green where the LLM wins. The best head in hindsight was "
    "chosen by the test labels, and privacy rules out centralised training: no verdict counts these two."
)
Row = ScoreRow | ComparedRow
Title = Callable[[str], str]
"""Title of a task, or of a model."""
FOLLOWS = "What the LLM's answers follow"
SHORT_PARTS = {"open": " open", "closed": " yes/no"}
SHORT = {
    "reuse/nearest": "Near head",
    "reuse/mean": "Mean head",
    "reuse/best": "Best in hind- sight",
    "count": "Count",
    "blind/other": "Other data",
    "blind/none": "No data",
    "blind/type": "By type",
    "lora": "One LoRA",
}
"""Titles in a terminal."""
LED = (WORDS, WORDS_EQUAL)
"""Models that stand first in the table of the clinical pictures."""
WIDTH = 6
"""Characters of a difference there."""


def of_run(run: Run) -> list[html.Part]:
    """Every control below the LLM, the heads that were reused, and the LLM's answers to its question in other words."""
    text = f"{READING} with the 95 % interval on the same resamples of the same patients. {COLOURS}"
    gaps = [gap for gap in run.all_scores.differences if gap.model == INJECTED]
    tables = _Models(run.all_scores.rows, gaps, run.model_title).tables(run.title)
    parts = [*tables, *_reused_heads(run), *_follows(run.file(ControlFile).answers, run.title), *_absent(run)]
    return html.when(parts, html.Text(text, "soft"), *parts)


def of_comparison(comparison: ComparisonFile, title: Title) -> list[html.Part]:
    """Every cell's LLM above all its controls, task by task, and what its answers follow; the first cell unfolded."""
    text = f"{READING} with the 95 % interval over seeds and patients. {COLOURS}"
    folded: list[html.Part] = []
    for label in comparison.labels:
        gaps = [gap for gap in comparison.differences if (gap.label, gap.baseline_label) == (label, label)]
        models = _Models([row for row in comparison.rows if row.label == label], gaps)
        if tables := models.tables(title):
            answers = _follows([one for one in comparison.answers if one.label == label], title)
            folded.append(html.Details(label, [*tables, *answers], unfolded=not folded))
    return html.when(folded, html.Text(text, "soft"), *folded)


class Group(NamedTuple):
    """Tasks that share a table: its caption, and what is printed of them."""

    caption: str
    role: str | None
    metric: str
    part: str | None


GROUPS = (
    Group("Trained tasks, AUROC", "trained", "auroc", None),
    Group("Unseen tasks, AUROC", "unseen", "auroc", None),
    Group("Open questions, token F1", None, "token_f1", "open"),
    Group("Yes/no among open questions, AUROC", None, "auroc", "closed"),
)


class _Models:
    """Rows of models, and the LLM minus them, by model and by (metric, task, part)."""

    def __init__(self, rows: Sequence[Row], gaps: Sequence[Gap], named: Title = model_title) -> None:
        self._rows, self._named = rows, named
        self._held = {(row.model, row.metric, row.task, row.part): row for row in rows}
        self._gaps = {(baseline_of(gap), gap.metric, gap.task, gap.part): gap for gap in gaps}
        self._models = [model for model in model_order(row.model for row in rows) if not is_single_head(model)]

    def tables(self, title: Title) -> list[html.Part]:
        """Return a table per group of tasks; none where no control answered."""
        made: list[html.Part] = []
        for group in GROUPS if any(map(is_control, self._models)) else ():
            tasks = list(dict.fromkeys(row.task for row in self._rows if _belongs(row, group)))
            columns = [html.Column("Model", style=""), *html.columns(*map(title, tasks))]
            lines = [line for model in self._models if (line := self._line(model, group, tasks)) is not None]
            made += html.when(lines, html.Table(group.caption, columns, [html.Group(lines)], "matrix", group.caption))
        return made

    def _line(self, model: str, group: Group, tasks: Sequence[str]) -> html.Row | None:
        """Return a model's row; None where it answers none of the tasks, or is a constant with an AUROC of 0.5."""
        rows = [self._held.get((model, group.metric, task, group.part)) for task in tasks]
        dull = is_constant(model) and (model, group.part) != (BEST_CONSTANT, "open")
        if dull or all(row is None or row.value is None for row in rows):
            return None
        gaps = [self._gaps.get((model, group.metric, task, group.part)) for task in tasks]
        cells = [_cell(row, gap) for row, gap in zip(rows, gaps, strict=True)]
        return html.Row(self._named(model), cells, model_style(model))


def _belongs(row: Row, group: Group) -> bool:
    return (row.metric, row.part) == (group.metric, group.part) and group.role in (None, row.role) and bool(row.n)


def _cell(row: Row | None, gap: Gap | None) -> html.Cell:
    """Return a value, below it the LLM's minus it; of the LLM itself its own interval."""
    if row is None or row.value is None:
        return html.Cell(MISSING)
    if gap is None or gap.value is None:
        return html.Cell(number(row.value), bounds(row) if row.model == INJECTED else "")
    text = f"{number(gap.value, signed=True)} {bounds(gap, signed=True)}".strip()
    return html.Cell(number(row.value), text, _style(gap))


def run_tables(folder: Path) -> list[TerminalTable]:
    """Return the tables of the run in ``folder`` for the terminal: every model by task, then the LLM minus controls."""
    return [summary_table(folder), *([table] if (table := control_table(folder)) is not None else [])]


def control_table(folder: Path) -> TerminalTable | None:
    """Return the LLM minus every control of the run in ``folder``, for the terminal; None where a run has none."""
    run = Run(folder)
    gaps = {place: gap for place, gap in _gaps_of(run).items() if is_control(gap.baseline)}
    models = [model for model in model_order(baseline for *_, baseline in gaps) if not is_single_head(model)]
    lines = []
    for task in run.ordered(task for task, *_ in gaps):
        for part in (None, *PARTS):
            cells = [_short(gaps.get((task, part, model))) for model in models]
            lines += [[f"{task.upper()}{SHORT_PARTS.get(part or '', '')}", *cells]] if any(cells) else []
    titles = [SHORT.get(model) or model_title(model) for model in models]
    table = terminal_table("Injected LLM minus:", ["task"], titles, lines)
    note = "! The LLM loses by the whole interval, which report and medfed scores --json have. "
    table.caption = TerminalText(f"{note}Open questions: token F1, all others: AUROC.")
    table.padding = (0, 1, 0, 0)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.min_width = WIDTH
    return table if lines else None


def _short(gap: Difference | None) -> str:
    """``−0.03!``: a difference, and a mark where the LLM loses to a control."""
    if gap is None or gap.value is None:
        return ""
    loses = gap.baseline in JUDGED and verdict_on(gap) == CONTRADICTED
    return f"{number(gap.value, 2, signed=True)}{'!' * loses}"


def _style(gap: Gap) -> str:
    """A bound has no colour, for the LLM need not beat it."""
    judged = baseline_of(gap) in JUDGED or is_constant(baseline_of(gap))
    return f"num {verdict_style(verdict_on(gap))}" if judged else "num"


def _gaps_of(run: Run) -> dict[tuple[str, str | None, str], Difference]:
    """Return the LLM's first metric minus that of every control, by task, part and control."""
    gaps = [gap for gap in run.all_scores.differences if gap.model == INJECTED and is_first(gap)]
    known = [gap for gap in gaps if gap.baseline in (*JUDGED, *BOUNDS) or is_control(gap.baseline)]
    return {(gap.task, gap.part, gap.baseline): gap for gap in known}


def _reused_heads(run: Run) -> list[html.Part]:
    """Which head answered which unseen task, and why the others did not."""
    gaps, lines = _gaps_of(run), []
    for reuse in run.file(ControlFile).reuse:
        others = []
        for name, similarity in reuse.similarity.items():
            gap = gaps.get((reuse.task, None, f"{REUSE}{name}"))
            less = f", {number(gap.value, signed=True)} {bounds(gap, signed=True)}" if gap else ""
            others.append(f"{run.title(name)} ({number(similarity, 2)}{less})")
        left_out = [f"{run.title(name)}: {why}" for name, why in reuse.left_out.items()]
        chosen = [run.title(name) if name else MISSING for name in (reuse.nearest, reuse.best)]
        texts = [*chosen, ", ".join(others), "; ".join(left_out)]
        lines.append(html.Row(run.title(reuse.task), [html.Cell(text, style="plain") for text in texts]))
    heads = [
        "Unseen task",
        "Nearest head",
        "Best in hindsight",
        "Heads that answer (similarity, LLM − head)",
        "Left out",
    ]
    caption = "Trained heads that answer unseen tasks"
    table = html.Table(caption, html.columns(*heads, style=""), [html.Group(lines)], "lines", caption)
    note = "The nearest head is chosen by the words of task description and question (TF-IDF), before any score."
    return html.when(lines, table, html.Text(note, "soft small"))


def _follows(checks: Iterable[AnswerCheck | ComparedAnswers], title: Title) -> list[html.Part]:
    """Whether the LLM's answers follow the heads, and the question."""
    lines = []
    for check in checks:
        ranks = [f"{model_title(name)} {number(value, 2)}" for name, value in check.rank_correlation.items()]
        numbers = [number(check.negation, 2), number(check.paraphrases, 2), str(check.n)]
        cells = [html.Cell(", ".join(ranks) or MISSING, style="plain"), *map(html.Cell, numbers)]
        tip = " ".join([check.opposite, *check.reworded]) if isinstance(check, AnswerCheck) else ""
        lines.append(html.Row(title(check.task), cells, tip=tip))
    heads = html.columns("Opposite to the negated question", "Same to paraphrases", "n")
    columns = [*html.columns("Task", "Rank correlation with heads", style=""), *heads]
    note = "A rank correlation of 1: the LLM orders patients as that head does. An LLM that reads the question gives "
    note += "the opposite answer to its negation, and the same to a paraphrase. One that ignores it has 0 and 1. Of "
    note += "unseen tasks, answers are split at the mean log-odds of each question."
    table = html.Table(FOLLOWS, columns, [html.Group(lines)], "lines", FOLLOWS)
    return html.when(lines, table, html.Text(note, "soft small"))


def _absent(run: Run) -> list[html.Part]:
    """Why a control has no answer."""
    lines = [
        f"{run.title(task)}, {model_title(control).lower()}: {why}"
        for task, reasons in run.file(ControlFile).absent.items()
        for control, why in reasons.items()
    ]
    return html.when(lines, html.Details(f"Controls without an answer ({len(lines)})", [html.Items(lines)]))


def pictures(run: Run) -> list[html.Part]:
    """The mean AUROC over the clinical pictures by model, the paired differences, and the findings of each picture."""
    words = run.file(WordsFile)
    held = sorted((one for one in words.means if one.baseline is None), key=lambda one: one.model not in LED)
    lines = [(one, model_title(one.model)) for one in held]
    gaps = {one.baseline: one for one in words.means if one.baseline and one.model == WORDS}
    rows = []
    for one, title in lines:
        gap = gaps.get(one.model)
        printed = "" if gap is None else f"{number(gap.value, signed=True)} {bounds(gap, 3, signed=True)}"
        rows.append(html.Row(title, [f"{number(one.value)} {bounds(one, 3)}", printed], model_style(one.model)))
    columns = [html.Column("Model", style=""), *html.columns("Mean AUROC", "Findings weighed − model")]
    counted = words.means[0] if words.means else None
    text = "Nobody trains on a clinical picture, and no patient enters the LLM: it says once what findings mean. "
    text += f"Means over {counted.num_tasks} pictures of {counted.num_patients} patients. " if counted else ""
    named = [f"{one.picture}: {joined(list(one.weights.get(WORDS, {}))[:3])}" for one in words.pictures]
    parts: list[html.Part] = [html.Table("Clinical pictures", columns, [html.Group(rows)])] if rows else []
    return html.when(named, html.Text(text, "soft"), *parts, html.Items(named))
