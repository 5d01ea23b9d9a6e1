"""Knowledge that the LLM kept through injection: examinations without patients, paired question by question."""

from __future__ import annotations

from medfed.evaluation.verdict import SUPPORTED, better, opposite
from medfed.records.schema import Difference, ScoreFile, ScoreRow
from medfed.report import html
from medfed.report.models import is_constant, model_title
from medfed.report.run import Run
from medfed.report.text import bounds, joined, number

BEFORE, AFTER = "before", "after"
"""The LLM in scores, as it was and as the last injection left it."""
FELL, ROSE, UNCLEAR = "fell", "rose", "no clear change"
CHANCE = {"examination": "0.25", "classification": "0.5"}
"""Score of guessing by kind of answer: one of four options, or the ranking of yes and no."""
TEXT = (
    "Questions without patients to the LLM as it was and as injection left it, each time the same ones. "
    "All experts are mixed evenly, for such a question has no task to route by. An interval of the "
    "difference that holds 0 does not show that nothing was lost."
)


def kept(run: Run) -> list[html.Part]:
    """A row per examination and form: before, in between, after, and the paired difference."""
    columns, lines = lines_of(run.knowledge)
    heads = [html.Column("Examination", style=""), *html.columns(*columns[1:])]
    rows = [html.Row(line[0], line[1:]) for line in lines]
    table = html.Table("What the LLM kept", heads, [html.Group(rows)], "matrix")
    return html.when(rows, html.Text(TEXT, "soft"), table)


def lines_of(knowledge: ScoreFile) -> tuple[list[str], list[list[str]]]:
    """Return the heads and lines of the table, as text; no lines where the LLM was not examined."""
    rows = {(row.task, row.model): row for row in knowledge.rows if row.primary}
    gaps = {gap.task: gap for gap in differences(knowledge)}
    looks = list(dict.fromkeys(model for _, model in rows if model.partition("-")[0] in (BEFORE, AFTER)))
    heads = ["examination", "n", "metric", *map(model_title, looks), "after − before", ""]
    lines = []
    for task, facts in knowledge.tasks.items():
        if not (held := [rows[task, look] for look in looks if (task, look) in rows]):
            continue
        first = held[0]
        metric = f"{first.title}{'' if first.higher_is_better else ' ↓'}"
        values = [_value(rows[task, look]) if (task, look) in rows else "" for look in looks]
        gap = gaps.get(task)
        lines.append([facts.title, str(first.n), metric, *values, *((_gap(gap), verdict(gap)) if gap else ("", ""))])
    return heads, lines


def zero_shot_rows(scores: ScoreFile) -> list[dict[str, str]]:
    """Return a row per examination of an LLM alone: value, interval, and what guessing gives."""
    models = {row.model for row in scores.rows if not is_constant(row.model)}
    return [
        {
            "examination": scores.tasks[row.task].title,
            "n": str(row.n),
            "metric": row.title,
            "value [95 % CI]": f"{_value(row)}{', one answer only' * row.single_class}",
            "chance": CHANCE.get(scores.tasks[row.task].kind, ""),
        }
        for row in scores.rows
        if row.primary and row.model in models
    ]


def differences(knowledge: ScoreFile) -> list[Difference]:
    """Return the paired difference of the primary metric, last against first, of every examination."""
    gaps = knowledge.differences
    return [gap for gap in gaps if gap.primary and (gap.model, gap.baseline) == (AFTER, BEFORE)]


def verdict(gap: Difference) -> str:
    """Return whether the LLM fell, rose, or neither by the whole interval."""
    if better(gap) == SUPPORTED:
        return ROSE
    return FELL if opposite(better(gap)) == SUPPORTED else UNCLEAR


def sentences(run: Run) -> list[str]:
    """Return one sentence with every difference; none where the LLM was not examined."""
    titles = {name: facts.title for name, facts in run.knowledge.tasks.items()}
    parts = [f"{titles.get(gap.task, gap.task)} ({gap.title}) {_gap(gap)}" for gap in differences(run.knowledge)]
    return [f"What the LLM kept, after − before: {joined(parts)}."] * bool(parts)


def _value(row: ScoreRow) -> str:
    return f"{number(row.value)} {bounds(row)}".strip()


def _gap(gap: Difference) -> str:
    return f"{number(gap.value, signed=True)} {bounds(gap, 3, signed=True)}".strip()
