"""Scores of one run: claims, the headline, all metrics, answers in words, clients, sites, and the terminal's table.

Does injection help? Each claim is judged by its interval alone, and the report's first sentences are on the claims.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table as TerminalTable
from rich.text import Text as TerminalText

from medfed.evaluation.controls import COUNT, NEAREST, WORDS, WORDS_EQUAL, is_control
from medfed.evaluation.verdict import (
    CONTRADICTED,
    SUPPORTED,
    UNCLEAR,
    Gap,
    OverControls,
    above_chance,
    baseline_of,
    better,
    over_controls,
)
from medfed.records.schema import (
    ComparedDifference,
    Difference,
    ScoreFile,
    ScoreRow,
    SiteFile,
    SiteRow,
    WordsFile,
)
from medfed.report import html, retention
from medfed.report.models import (
    BEST_CONSTANT,
    FEDERATED,
    INJECTED,
    in_first_tables,
    is_constant,
    model_order,
    model_style,
    model_title,
)
from medfed.report.published import published_rows
from medfed.report.run import Run
from medfed.report.text import MISSING, bounds, joined, natural, number, plural, terminal_table

ROLES = {"trained": "Trained tasks", "unseen": "Unseen tasks"}
PARTS = {"open": "Open questions", "closed": "Yes/no questions"}
"""The part ``all`` pools what is not alike: only tables with published numbers have it."""
LEADING = (None, "open")
"""Parts by which models are ranked: of questions in words the open ones."""
AUROC, BALANCED = "AUROC", "balanced_accuracy"
FLAG = "one answer only"
MODEL = html.Column("Model", style="")
MOST_INTERVALS = 3
"""Models of the terminal's table, above which the injected LLM alone keeps its interval and titles are short."""
SHORT = {"federated": "Federated", "heads": "Heads", "local": "Local"}
BY_WORDS = (WORDS, WORDS_EQUAL, COUNT, NEAREST)
"""Columns of the terminal's table where findings are weighed and nothing is injected."""
CHANCE = 0.5
"""AUROC of a constant answer."""
NO_VALUE = "no value"
TRAINED, UNSEEN, IN_WORDS = "better than federated-only", "above chance", "better than the best constant answer"
KINDS = {
    TRAINED: "Injected LLM better than the federated-only model, AUROC on {} with training",
    UNSEEN: "Injected LLM above chance, AUROC on {} without training",
    IN_WORDS: "Injected LLM better than the best constant, token F1 of open questions on {}",
}


class Claim(NamedTuple):
    """A claim on one task: what is claimed, the verdict, and the row that it rests on."""

    text: str
    verdict: str
    row: ScoreRow | Difference

    @property
    def evidence(self) -> str:
        """The difference with its interval, or why there is none; of a value, only what counts against it."""
        if self.row.value is None:
            return self.row.reason or ""
        if isinstance(self.row, ScoreRow):
            return "one answer only" if self.row.single_class else ""
        return f"{number(self.row.value, signed=True)} {bounds(self.row, 3, signed=True)}".strip()


def claims(scores: ScoreFile) -> dict[str, Claim]:
    """Return the claim on every task of a run with an injected LLM.

    Trained: AUROC minus the federated-only model's, on the same resamples of the same patients. Unseen: AUROC above
    chance. Answered in words: token F1 of the open questions minus that of the best constant answer.
    """
    made = {}
    for gap in scores.differences:
        if (gap.model, gap.baseline, gap.metric, gap.part) == (INJECTED, FEDERATED, "auroc", None):
            made[gap.task] = Claim(TRAINED, verdict_on(gap), gap)
        if (gap.model, gap.baseline, gap.metric, gap.part) == (INJECTED, BEST_CONSTANT, "token_f1", "open") and gap.n:
            made[gap.task] = Claim(IN_WORDS, verdict_on(gap), gap)
    for row in scores.rows:
        if (row.model, row.metric, row.part, row.role) == (INJECTED, "auroc", None, "unseen"):
            made[row.task] = Claim(UNSEEN, NO_VALUE if row.value is None else above_chance(row, CHANCE), row)
    return made


def sentences(scores: ScoreFile) -> list[str]:
    """Return the verdicts in words, one sentence per kind of task; none for a run without an injected LLM."""
    made = list(claims(scores).values())
    by_kind = {sentence: [claim.verdict for claim in made if claim.text == kind] for kind, sentence in KINDS.items()}
    lines = [f"{text.format(plural(len(held), 'task'))}: {tally(held)}." for text, held in by_kind.items() if held]
    return [*lines, *against_controls(scores)]


def tally(verdicts: Iterable[str]) -> str:
    """Count verdicts: ``supported on 2, not distinguishable on 1, contradicted on 0``."""
    counts = Counter(verdicts)
    words = [SUPPORTED, UNCLEAR, CONTRADICTED, *([NO_VALUE] if counts[NO_VALUE] else [])]
    return ", ".join(f"{word} on {counts[word]}" for word in words)


def verdict_style(verdict: str) -> str:
    """Return the CSS classes of a verdict."""
    return f"outcome {verdict.replace(' ', '-')}"


def verdict_on(gap: Difference | ComparedDifference) -> str:
    """Return the verdict on "better than the baseline"."""
    return NO_VALUE if gap.value is None else better(gap)


def headline(run: Run) -> list[html.Part]:
    """One table per role: the primary metric of every model on every task, and what follows from it."""
    primary, judged = [row for row in run.scores.rows if row.primary], claims(run.all_scores)
    text = "Test set, with 95 % intervals from a bootstrap by patient. The dashed line is the best constant answer, "
    text += "which is the same for everyone. "
    text += "Its AUROC is 0.5. " if any(row.title == AUROC for row in primary) else ""
    if judged:
        text += "Injected LLM: the server's model after knowledge injection. Federated-only: the clients' own model "
        text += "and heads, without an LLM. A claim is supported or contradicted only by its whole interval."
    parts: list[html.Part] = []
    for role, title in ROLES.items():
        if names := run.ordered(row.task for row in primary if row.role == role):
            parts.append(_headline_table(run, names, title if run.study.unseen else "Tasks", judged))
    if judged and run.study.unseen:
        note = "Nobody trained on an unseen task. "
        if any(row.model == NEAREST for row in primary):
            note += "The trained head whose text is nearest answers it too; no label chose it."
        parts.append(html.Text(note, "soft small"))
    return html.when(parts, html.Text(text, "soft"), *parts)


def all_metrics(run: Run) -> list[html.Part]:
    """Every model and metric by task, and the published numbers of the same task; a table per set of metrics."""
    by_metrics: dict[tuple[str, ...], list[html.Group]] = {}
    sources: list[str] = []
    for task in run.ordered(row.task for row in run.scores.rows):
        rows = [row for row in run.scores.rows if row.task == task]
        metrics = tuple(dict.fromkeys(row.metric for row in rows))
        groups = by_metrics.setdefault(metrics, [])
        groups.append(html.Group(_model_rows(run, rows, metrics), run.title(task), size_text(rows[0])))
        if any(row.model == INJECTED for row in rows):
            others = published_rows(task, metrics, run.setting("algorithm.name"))
            groups += [html.Group(others, note="Published, on other data")] if others else []
            sources += [f"{run.title(task)}, {row.head}: {row.tip}" for row in others]
    heads = {row.metric: f"{row.title}{'' if row.higher_is_better else ' ↓'}" for row in run.scores.rows}
    parts: list[html.Part] = []
    for metrics, groups in by_metrics.items():
        columns = [MODEL, *html.columns(*(heads[name] for name in metrics))]
        parts.append(html.Table("All metrics", columns, groups, toggle=True))
    text = "Precision, recall and F1 are those of the positive class. " * any("precision" in m for m in by_metrics)
    text += "An arrow marks metrics that are better when lower."
    note = html.Text("Published rows are other people's numbers: this run need not reach them.", "soft small")
    parts += html.when(sources, note, html.Details("Sources of the published rows", [html.Items(sources)]))
    return [*html.when(parts, html.Text(text, "soft"), *parts), *_missing(run)]


def open_questions(run: Run) -> list[html.Part]:
    """A table per task whose questions are answered in words: every text metric by part of the questions."""
    rows = run.open_scores.rows
    signatures = joined(row.signature for row in rows if row.signature)
    text = "Answers are decoded greedily up to an end mark, a line break, a next question or a repeated word. Case, "
    text += "punctuation and articles do not count. The best constant answer is chosen with the references known. "
    text += f"sacreBLEU runs from 0 to 100{f' ({signatures})' if signatures else ''}."
    gaps = {(gap.task, gap.part, gap.metric, gap.model): gap for gap in run.open_scores.differences}
    parts: list[html.Part] = []
    for task in run.ordered(row.task for row in rows):
        mine = [row for row in rows if row.task == task]
        metrics = {row.metric: row.title for row in mine if row.part == "open"}  # the others are likelihoods
        groups = []
        for part, title in PARTS.items():
            held = [row for row in mine if row.part == part and row.metric in metrics]
            if held and held[0].n:
                gap = gaps.get((task, part, "token_f1", INJECTED))
                claim = _verdict(Claim(IN_WORDS, verdict_on(gap), gap)) if gap else None
                groups.append(html.Group(_model_rows(run, held, list(metrics)), title, f"n = {held[0].n}", claim))
        columns = [MODEL, *html.columns(*metrics.values())]
        parts.append(html.Table(run.title(task), columns, groups, "lines", run.title(task)))
        parts += [html.Text(line, "small") for line in _likelihood(run, mine)]
    return html.when(parts, html.Text(text, "soft"), *parts)


def by_client(run: Run) -> list[html.Part]:
    """Every model's primary metric on every client's own test examples."""
    text = "Every client tests the model that it would use on its own patients. A good mean can hide a badly served "
    text += "client."
    rows = [row for row in run.scores.rows if row.primary and len(row.clients) > 1]
    parts: list[html.Part] = []
    for task in run.ordered(row.task for row in rows):
        mine = {row.model: row for row in rows if row.task == task}
        clients = sorted({name for row in mine.values() for name in row.clients}, key=natural)
        lines = {key: [_worst(row), *(number(row.clients.get(name)) for name in clients)] for key, row in mine.items()}
        caption = f"{run.title(task)}: {next(iter(mine.values())).title}"
        parts.append(_place_table(run, caption, html.columns("Worst client", *clients), lines))
    return html.when(parts, html.Text(text, "soft"), *parts)


def at_sites(run: Run) -> list[html.Part]:
    """How well the last model does at every site, on the site's own held-out patients."""
    text = "Every site tests the last model on its own held-out patients and reports metrics and their number. The "
    text += "mean is weighted by test examples. A dash: the site has no such data, or too few kinds of answers."
    rows = [row for row in run.file(SiteFile).rows if row.primary]
    parts: list[html.Part] = []
    for task in dict.fromkeys(row.task for row in rows):
        mine = {row.model: row for row in rows if row.task == task}
        counts = {site: n for row in mine.values() for site, n in row.site_n.items()}
        sites = sorted(counts, key=natural)
        values = {model: [row.pooled, *(row.sites.get(site) for site in sites)] for model, row in mine.items()}
        lines = {m: [number(mean), _worst(mine[m]), *map(number, others)] for m, (mean, *others) in values.items()}
        caption = f"{run.title(task)}: {next(iter(mine.values())).title}, {sum(counts.values())} test examples"
        columns = [*html.columns("Mean", "Worst site"), *(html.Column(site, f"n = {counts[site]}") for site in sites)]
        parts.append(_place_table(run, caption, columns, lines))
    failures = [f"{failure.client} ({failure.phase}): {failure.reason}" for failure in run.file(SiteFile).failures]
    parts += html.when(failures, html.Text("Sites without scores", "h3"), html.Items(failures))
    return html.when(parts, html.Text(text, "soft"), *parts)


def summary_table(folder: Path) -> TerminalTable:
    """Return every model's primary metric on every task of the run in ``folder``, for the terminal; no control's.

    The controls are in :func:`medfed.report.controls.control_table`; the caption names those that the LLM loses to.
    Where findings are weighed and nothing is injected, :data:`BY_WORDS` have columns.
    """
    run = Run(folder)
    rows = [row for row in run.all_scores.rows if is_first(row)]
    judged, metric = claims(run.all_scores), Counter(row.title for row in rows).most_common(1)[0][0] if rows else ""
    given = model_order(row.model for row in rows)
    printed = () if INJECTED in given else BY_WORDS
    models = [m for m in given if m in printed or not (is_constant(m) or is_control(m))]
    constants, by_clients = metric != AUROC, any(len(row.clients) > 1 for row in rows)
    crowded = len(models) > MOST_INTERVALS
    titles = [SHORT.get(model, run.model_title(model)) if crowded else run.model_title(model) for model in models]
    numbers = ["n", *titles, *["best constant"] * constants]
    others = [*["verdict"] * bool(judged), *["worst client"] * by_clients]
    lines = []
    for task, part in sorted(dict.fromkeys((row.task, row.part) for row in rows), key=_place_of(run)):
        mine = {row.model: row for row in rows if (row.task, row.part) == (task, part)}
        first, constant = next(iter(mine.values())), best_constant(mine.values())
        claim = judged.get(task) if part in LEADING else None
        unseen, other = " (unseen)" * (first.role == "unseen"), f": {first.title}" * (first.title != metric)
        kind = f", {PARTS[part].lower().removesuffix(' questions')}" if part else ""
        cells = [f"{run.title(task)}{unseen}{kind}{other}", str(first.n)]
        cells += [_terminal(mine.get(model), bare=crowded and model != INJECTED) for model in models]
        cells += [number(constant.value) if constant else ""] * constants
        cells += [f"{claim.verdict} {claim.evidence}".strip() if claim else ""] * bool(judged)
        cells += [_worst(mine[FEDERATED]) if FEDERATED in mine else ""] * by_clients
        lines.append(cells)
    notes = against_controls(run.all_scores)
    notes += [f"Claims: {joined(claim.text for claim in judged.values())}."] * bool(judged)
    notes += picture_sentences(run)
    notes += ["A constant answer has an AUROC of 0.5."] * (metric == AUROC)
    notes += ["* gives every patient the same answer."] * any(_is_stuck(row) for row in rows)
    notes += retention.sentences(run)
    table = terminal_table(f"{run.name}: {metric} [95 % CI]", ["task"], numbers, lines, others)
    table.caption = TerminalText(" ".join(notes))
    if judged:
        table.columns[len(numbers) + 1].min_width = len("distinguishable")
    return table


def picture_sentences(run: Run) -> list[str]:
    """Return one sentence with the mean over the clinical pictures and the paired differences; none without any."""
    means = run.file(WordsFile).means
    if (lead := next((one for one in means if (one.model, one.baseline) == (WORDS, None)), None)) is None:
        return []
    gaps = [one for one in means if one.model == WORDS and one.baseline in BY_WORDS]
    values = [f"{number(gap.value, signed=True)} {bounds(gap, 3, signed=True)}" for gap in gaps]
    parts = [f"{model_title(gap.baseline or '').lower()} {value}" for gap, value in zip(gaps, values, strict=True)]
    value = f"{number(lead.value)} {bounds(lead, 3)}"
    title = f"{model_title(WORDS)}: mean AUROC over {lead.num_tasks} clinical pictures {value}"
    return [f"{title}; minus {joined(parts)}." if parts else f"{title}."]


def is_first(row: ScoreRow | Difference) -> bool:
    """Whether the row is of its task's first metric: of open questions token F1, of yes/no among them the AUROC."""
    if row.part is None:
        return row.primary
    return bool(row.n) and (row.part, row.metric) in (("open", "token_f1"), ("closed", "auroc"))


def against_controls(scores: ScoreFile) -> list[str]:
    """Return one sentence on whether the LLM beats every control, naming those it loses to; none without controls."""
    titles = {task: facts.title for task, facts in scores.tasks.items()}
    held = over_controls(gap for gap in scores.differences if gap.model == INJECTED and is_first(gap))
    return [f"Injected LLM {over_in_words(held, lambda task: titles.get(task) or task)}"] if held else []


def over_in_words(held: OverControls, title: Callable[[str], str], *, short: bool = False) -> str:
    """Say on how many tasks the LLM is better than every control, and where it loses to which; shortly only where."""
    text = f"better than every control, on {plural(len(held.verdicts), 'task')}: {tally(held.verdicts.values())}."
    places = {question: f"{title(question[0])}{part_title(question[1])}" for question in held.lost}
    if short:
        return f"{text} It loses to at least one on {joined(places.values())}." if places else text
    for question, gaps in held.lost.items():
        text += f" It loses on {places[question]} to: {joined(map(_by_how_much, gaps))}."
    return text


def part_title(part: str | None) -> str:
    """Return what follows a task's title where only a part of its questions is meant."""
    return f", {PARTS[part].lower()}" if part in PARTS else ""


def _by_how_much(gap: Gap) -> str:
    return f"{model_title(baseline_of(gap))} ({number(gap.value, signed=True)} {bounds(gap, signed=True)})"


def _place_of(run: Run) -> Callable[[tuple[str, str | None]], tuple[int, int]]:
    """Return the order of tasks and, within one, of its parts."""
    known, parts = run.ordered(row.task for row in run.all_scores.rows), [None, *PARTS]
    return lambda place: (known.index(place[0]), parts.index(place[1]))


def best_constant(rows: Iterable[ScoreRow]) -> ScoreRow | None:
    """Return the row of the best constant answer; None where no constant has a value."""
    known = [row for row in rows if is_constant(row.model) and row.value is not None]
    return max(known, key=lambda row: (row.value or 0.0) * (1 if row.higher_is_better else -1), default=None)


def size_text(row: ScoreRow) -> str:
    """``n = 240, 61 positive``."""
    patients = f" of {row.num_patients} patients" if row.num_patients else ""
    positive = f", {row.num_positive} positive" if row.num_positive is not None else ""
    return f"n = {row.n}{patients}{positive}"


def _headline_table(run: Run, tasks: Collection[str], title: str, judged: dict[str, Claim]) -> html.Table:
    rows = [row for row in run.scores.rows if row.task in tasks]
    titles = dict.fromkeys(row.title for row in rows if row.primary)
    second = any(row.metric == BALANCED and not row.primary for row in rows)
    lows = [value for row in run.scores.rows if row.primary for value in (row.ci_low, row.value) if value is not None]
    low = max(0.0, math.floor(min([0.4, *lows]) * 10) / 10)  # a round number below all intervals, and below 0.5
    columns = [MODEL, html.Column(joined(titles) if len(titles) == 1 else "Primary metric", "[95 % CI]")]
    columns += [html.Column("", f"{low:g}", "axis"), *html.columns(*["Balanced accuracy"] * second)]
    groups = []
    for task in tasks:
        mine = [row for row in rows if row.task == task]
        primary = {row.model: row for row in mine if row.primary}
        other = {row.model: row for row in mine if row.metric == BALANCED and not row.primary}
        constant = best_constant(primary.values())
        drawn = [model for model in model_order(primary) if not is_constant(model) and in_first_tables(model)]
        lines = []
        for model in [*drawn, *([constant.model] if constant else [])]:
            flag = FLAG if any(_is_stuck(row) for row in (primary[model], other.get(model)) if row) else ""
            cells = [
                _score(primary[model]),
                _track(primary[model], low, constant),
                *[_score(other.get(model))] * second,
            ]
            lines.append(html.Row(run.model_title(model), cells, model_style(model), flag=flag))
        claim = _verdict(judged[task]) if task in judged else None
        metric = f"{next(iter(primary.values())).title}, " if len(titles) > 1 else ""
        groups.append(html.Group(lines, run.title(task), metric + size_text(mine[0]), claim))
    return html.Table(title, columns, groups, "results", title)


def _track(row: ScoreRow, low: float, constant: ScoreRow | None) -> html.Cell:
    def place(value: float | None) -> float | None:
        return None if value is None else round(100 * (min(max(value, low), 1.0) - low) / (1.0 - low), 2)

    ends = (row.ci_low, row.ci_high) if row.ci_low is not None and row.ci_high is not None else (None, None)
    return html.Cell(track=html.Track(*map(place, (row.value, *ends, constant.value if constant else None))))


def _model_rows(run: Run, rows: Sequence[ScoreRow], metrics: Sequence[str]) -> list[html.Row]:
    held = {(row.model, row.metric): row for row in rows}
    lines = []
    for model in model_order(row.model for row in rows):
        mine = [held.get((model, name)) for name in metrics]
        answer = next((f"“{row.answer}”" for row in mine if row is not None and row.answer), "")
        flag = FLAG if rows[0].part and any(_is_stuck(row) for row in mine if row is not None) else ""
        lines.append(html.Row(run.model_title(model), list(map(_score, mine)), model_style(model), answer, flag))
    return lines


def _place_table(run: Run, caption: str, columns: Sequence[html.Column], lines: Mapping[str, list[str]]) -> html.Table:
    """Return a table of models by client or site."""
    rows = [html.Row(run.model_title(model), lines[model], model_style(model)) for model in model_order(lines)]
    return html.Table(caption, [MODEL, *columns], [html.Group(rows)], "matrix", caption)


def _missing(run: Run) -> list[html.Part]:
    """Every value that is null or rests on a convention, with its reason; constants left out."""
    lines = []
    for row in run.scores.rows:
        if row.reason and not is_constant(row.model):
            cells = [html.Cell(text, style="plain") for text in (run.model_title(row.model), row.title, row.reason)]
            lines.append(html.Row(run.title(row.task), cells))
    heads = html.columns("Task", "Model", "Metric", "Reason", style="")
    table = html.Table("Missing values", heads, [html.Group(lines)], "lines")
    return html.when(lines, html.Details(f"Values that are missing or rest on a convention ({len(lines)})", [table]))


def _likelihood(run: Run, rows: Sequence[ScoreRow]) -> list[str]:
    """A sentence per model on the yes/no questions, judged by the likelihoods of yes and no."""
    held = {(row.model, row.metric): row for row in rows if row.part == "closed" and not is_constant(row.model)}
    lines = []
    for model in model_order(model for model, metric in held if metric == "auroc"):
        auroc, balanced = held[model, "auroc"], held.get((model, BALANCED))
        second = f", balanced accuracy {number(balanced.value)} {bounds(balanced)}" if balanced is not None else ""
        reason = f" ({auroc.reason})" if auroc.value is None and auroc.reason else ""
        values = f"AUROC {number(auroc.value)} {bounds(auroc)}{reason}{second}"
        lines.append(f"{run.model_title(model)}, likelihood of yes against no on {auroc.n} yes/no questions: {values}.")
    return lines


def _score(row: ScoreRow | None) -> html.Cell:
    return html.Cell(number(row.value), bounds(row)) if row is not None else html.Cell(MISSING)


def _verdict(claim: Claim) -> html.Cell:
    return html.Cell(f"{claim.text}: {claim.verdict}", claim.evidence, verdict_style(claim.verdict))


def _is_stuck(row: ScoreRow) -> bool:
    """Whether a model that is no constant gives everybody the same answer."""
    return row.single_class and not is_constant(row.model)


def _worst(row: ScoreRow | SiteRow) -> str:
    name = row.worst_client if isinstance(row, ScoreRow) else row.worst_site
    return f"{number(row.worst)} ({name})" if name else MISSING


def _terminal(row: ScoreRow | None, *, bare: bool = False) -> str:
    if row is None:
        return ""
    return f"{number(row.value)}{'*' * row.single_class} {'' if bare else bounds(row)}".strip()
