"""The models that could embarrass the injected LLM, and what its answers follow, as the report shows them."""

from __future__ import annotations

from medfed.evaluation.controls import JUDGED, is_control
from medfed.records.schema import ControlFile, Difference
from medfed.report import html
from medfed.report.models import INJECTED, model_order, model_title
from medfed.report.results import PARTS, is_first, verdict_on, verdict_style
from medfed.report.run import Run
from medfed.report.text import MISSING, bounds, number


def controls(run: Run) -> list[html.Part]:
    """The LLM minus every control, the heads that were reused, and the LLM's answers to its question in other words."""
    text = (
        "The injected LLM minus each control, on the same resamples of the same patients: AUROC, and token F1 of open "
    )
    text += "questions. A difference is green or red only if its whole interval is. The best head in hindsight was "
    text += "chosen by the test labels, so it is a bound, and no verdict counts it."
    parts = [*_differences(run), *_heads(run), *_answers(run), *_absent(run)]
    return html.when(parts, html.Text(text, "soft"), *parts)


def _differences(run: Run) -> list[html.Part]:
    gaps = {
        (gap.task, gap.part, gap.baseline): gap
        for gap in run.all_scores.differences
        if gap.model == INJECTED and is_first(gap) and (gap.baseline in JUDGED or is_control(gap.baseline))
    }
    models = model_order(baseline for *_, baseline in gaps)
    if not any(map(is_control, models)):
        return []
    lines = []
    for task in run.ordered(task for task, *_ in gaps):
        for part in (None, *PARTS):
            cells = [_difference(gaps.get((task, part, model))) for model in models]
            if any(cell.text != MISSING for cell in cells):
                lines.append(html.Row(f"{run.title(task)}{f', {PARTS[part].lower()}' if part else ''}", cells))
    caption = "Injected LLM minus each control"
    columns = [html.Column("Task", style=""), *html.columns(*map(model_title, models))]
    return [html.Table(caption, columns, [html.Group(lines)], "matrix", caption)]


def _difference(gap: Difference | None) -> html.Cell:
    if gap is None or gap.value is None:
        return html.Cell(MISSING)
    style = f"num {verdict_style(verdict_on(gap))}" if gap.baseline in JUDGED else "num"
    return html.Cell(number(gap.value, signed=True), bounds(gap, signed=True), style)


def _heads(run: Run) -> list[html.Part]:
    """Which head answered which unseen task, and why the others did not."""
    lines = []
    for reuse in run.file(ControlFile).reuse:
        others = [f"{run.title(name)} ({number(value, 2)})" for name, value in reuse.similarity.items()]
        left_out = [f"{run.title(name)}: {why}" for name, why in reuse.left_out.items()]
        chosen = [run.title(name) if name else MISSING for name in (reuse.nearest, reuse.best)]
        texts = [*chosen, ", ".join(others), "; ".join(left_out)]
        lines.append(html.Row(run.title(reuse.task), [html.Cell(text, style="plain") for text in texts]))
    heads = ["Unseen task", "Nearest head", "Best in hindsight", "Heads that answer (similarity)", "Left out"]
    caption = "Trained heads that answer unseen tasks"
    table = html.Table(caption, html.columns(*heads, style=""), [html.Group(lines)], "lines", caption)
    note = "The nearest head is chosen by the words of task description and question (TF-IDF), before any score."
    return html.when(lines, table, html.Text(note, "soft small"))


def _answers(run: Run) -> list[html.Part]:
    """Whether the LLM's answers follow the heads, and the question."""
    lines = []
    for check in run.file(ControlFile).answers:
        ranks = [f"{model_title(name)} {number(value, 2)}" for name, value in check.rank_correlation.items()]
        numbers = [number(check.negation, 2), number(check.paraphrases, 2), str(check.n)]
        cells = [html.Cell(", ".join(ranks) or MISSING, style="plain"), *map(html.Cell, numbers)]
        tip = " ".join([check.opposite, *check.reworded])
        lines.append(html.Row(run.title(check.task), cells, tip=tip))
    heads = html.columns("Opposite to the negated question", "Same to paraphrases", "n")
    columns = [*html.columns("Task", "Rank correlation with heads", style=""), *heads]
    caption = "What the LLM's answers follow"
    note = (
        "A rank correlation of 1: the LLM orders patients as that head does. An LLM that reads the question gives the "
    )
    note += "opposite answer to its negation, and the same to a paraphrase. One that ignores it has 0 and 1. Of unseen "
    note += "tasks, answers are split at the mean log-odds of each question."
    return html.when(
        lines, html.Table(caption, columns, [html.Group(lines)], "lines", caption), html.Text(note, "soft")
    )


def _absent(run: Run) -> list[html.Part]:
    """Why a control has no answer."""
    lines = [
        f"{run.title(task)}, {model_title(control).lower()}: {why}"
        for task, reasons in run.file(ControlFile).absent.items()
        for control, why in reasons.items()
    ]
    return html.when(lines, html.Details(f"Controls without an answer ({len(lines)})", [html.Items(lines)]))
