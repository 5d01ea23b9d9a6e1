"""Several runs compared: cells of a study over seeds, as a page, as Markdown and as a terminal table.

The numbers come from ``medfed.evaluation.compare``; this module prints them and computes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table as TerminalTable

from medfed.evaluation.controls import BOUNDS, is_control
from medfed.evaluation.metrics import METRICS as CLOSED_METRICS
from medfed.evaluation.text_metrics import TEXT_METRICS
from medfed.evaluation.verdict import over_controls
from medfed.records.schema import ComparedDifference, ComparedRow, ComparisonFile
from medfed.report import controls, html
from medfed.report.charts import Bar, Polygon, gain_bars
from medfed.report.learning import routers, routers_in_markdown
from medfed.report.models import (
    FEDERATED,
    INJECTED,
    is_constant,
    is_single_head,
    model_order,
    model_style,
    model_title,
)
from medfed.report.published import method_title, paper_rows
from medfed.report.results import LEADING, ROLES, over_in_words, part_title, verdict_on, verdict_style
from medfed.report.run import Run
from medfed.report.single import CONSTANT, RANGES, radars, synthetic_banner
from medfed.report.text import MISSING, bounds, joined, markdown_table, natural, number, origin, plural, terminal_table

MIN_SEEDS = 5
"""Below it nothing is called significant."""
CELL_STYLES = ("c0", "c2", "c3", "c4", "c5", "c6", "many")
"""Colours of the cells, the last of all further ones; the orange after the first is the federated-only model's."""
MEANS = {"mean-trained": "Mean of the trained tasks", "mean-unseen": "Mean of the unseen tasks"}
_TITLES = {metric.name: metric.title for metric in CLOSED_METRICS} | TEXT_METRICS
CLOSED = ("auroc", "balanced_accuracy", "accuracy", "precision", "recall", "f1")
METRICS = {name: _TITLES[name] for name in (*CLOSED, "token_f1", "exact_match", "bleu1", "rouge_l")}
"""The metrics that tables of one task have."""
TABULATED = ("auroc", "balanced_accuracy", "token_f1", "bleu1", "exact_match")
"""The metrics with a table over all tasks."""
PAPER_METRICS = ("accuracy", "precision", "recall", "f1", "bleu1")
PARTS = (None, "open", "closed")
COMPARED = ("auroc", "token_f1")
"""Metrics whose differences are listed in Markdown."""
BAR_LIMITS = {"auroc": (0.3, 1.0), "balanced_accuracy": (0.3, 1.0)}
"""Declared axes of the bars; others run from 0 to 1."""
NO_SETTINGS = {"seed", "name", "description"}
Place = tuple[str, str, str | None]
"""(metric, task, part)."""
Title = Callable[[str, str | None], str]
"""Title of a task and a part of its questions."""
LEADS = {None: "auroc", "open": "token_f1", "closed": "auroc"}
"""Part of the questions → the metric that ranks models on it."""


class Member(NamedTuple):
    """A model of one or more cells; cells that share a baseline share its column or line."""

    labels: tuple[str, ...]
    model: str
    title: str
    style: str


class Compared:
    """The rows of a comparison, by label, model, metric, task and part; ``titles`` are those of its tasks."""

    def __init__(self, comparison: ComparisonFile, titles: dict[str, str] | None = None) -> None:
        self.comparison, self._titles = comparison, titles or {}
        self._rows = {(row.label, row.model, *_place(row)): row for row in comparison.rows}
        self.members = list(self._members())

    def row(self, member: Member, metric: str, task: str, part: str | None = None) -> ComparedRow | None:
        """The row behind one entry."""
        return self._rows.get((member.labels[0], member.model, metric, task, part))

    def constant(self, *place: str | None) -> float | None:
        """The highest value that a constant answer reaches at (metric, task, part)."""
        rows = [row for row in self.comparison.rows if is_constant(row.model) and _place(row) == place]
        return max((row.value for row in rows if row.value is not None), default=None)

    def title(self, task: str, part: str | None = None) -> str:
        """Title of a task, or of a part of it, in a table."""
        title = MEANS.get(task) or self._titles.get(task) or task.upper()
        return f"{title}{part_title(part)}"

    def places(self, metric: str, role: str) -> list[Place]:
        """Where ``metric`` has values of a role, the mean first."""
        rows = [row for row in self.comparison.rows if row.part in PARTS]  # all questions together pool unlike things
        places = dict.fromkeys(_place(row) for row in rows if (row.metric, row.role) == (metric, role) and row.n)
        return sorted(places, key=lambda place: place[1] not in MEANS)

    @property
    def drawn(self) -> list[Member]:
        """The members that pictures hold: every cell's injected LLM, and the federated-only models."""
        return [member for member in self.members if member.model in (INJECTED, FEDERATED)]

    def _members(self) -> Iterator[Member]:
        values: dict[tuple[str, str], list[str]] = {}
        for row in self.comparison.rows:
            values.setdefault((row.model, row.label), []).append(f"{_place(row)} {row.per_seed} {row.value}")
        for model in model_order(model for model, _ in values):
            shared: dict[str, list[str]] = {}
            for label in self.comparison.labels:
                if held := values.get((model, label)):
                    shared.setdefault(label if model == INJECTED else str(sorted(held)), []).append(label)
            for who in shared.values():
                place = min(self.comparison.labels.index(who[0]), len(CELL_STYLES) - 1)
                style = CELL_STYLES[place] if model == INJECTED else model_style(model)
                yield Member(tuple(who), model, self._member_title(model, who), style)

    def _member_title(self, model: str, who: Sequence[str]) -> str:
        """A cell's label for its injected LLM; another model's name, with what its cells have in common."""
        if model == INJECTED:
            return who[0]
        if len(who) == len(self.comparison.labels):
            return model_title(model)
        first, *others = (self.comparison.cells.get(label, {}) for label in who)
        common = [value for axis, value in first.items() if all(cell.get(axis) == value for cell in others)]
        named = " · ".join(common) if len(who) > 1 else ""
        return f"{model_title(model)} ({named or (', '.join(who) if len(who) < 3 else f'{len(who)} cells')})"


def comparison_page(comparison: ComparisonFile, runs: Sequence[Run]) -> html.Page:
    """Return the page of a comparison; titles, data and settings are those of ``runs``."""
    compared = Compared(comparison, {name: title for run in runs for name, title in run.provenance.titles.items()})
    few = min(map(len, comparison.seeds.values()), default=1) < MIN_SEEDS
    text = "Nothing here is called significant: a difference between single runs may be one between seeds."
    sections = [
        html.Section("results", "Results", _matrices(compared)),
        html.Section("controls", "Controls", controls.of_comparison(comparison, compared.title)),
        html.Section("glance", "At a glance", radars(_glance(compared))),
        html.Section("bars", "Side by side", _bars(compared)),
        html.Section("differences", "Differences", _differences(compared)),
        html.Section("router", "Router", routers(comparison, CELL_STYLES)),
        html.Section("paper", "The paper's numbers", _paper(compared)),
        html.Section("runs", "Runs", _runs(comparison, runs)),
    ]
    name, kind = comparison.name or "Comparison", plural(len(comparison.labels), "configuration")
    made, verdicts = origin([run.provenance for run in runs]), sentences(comparison, compared.title)
    banners = [*synthetic_banner(runs), *[html.Banner(f"Fewer than {MIN_SEEDS} seeds.", text)] * few]
    return html.Page(name, f"medfed comparison of {kind}", sections, made, verdicts, comparison.description, banners)


def default_labels(folders: Sequence[Path]) -> list[str]:
    """Label runs by study and configuration hash, so that the seeds of one configuration share a label."""
    runs = [Run(folder) for folder in folders]
    return [f"{run.study.name or run.folder.parent.name} {run.folder.name.partition('-seed')[0]}" for run in runs]


def sentences(comparison: ComparisonFile, title: Title | None = None) -> list[str]:
    """Return the verdicts: the first cell's means against models and other cells, then every cell against its controls.

    ``title`` is that of a task and a part of its questions; by default short.
    """
    lines = []
    for task, mean in MEANS.items():
        key = (comparison.labels[0] if comparison.labels else "", INJECTED, task, "auroc")
        row = next((row for row in comparison.rows if (row.label, row.model, row.task, row.metric) == key), None)
        if row is not None and row.value is not None:
            mine = [gap for gap in comparison.differences if (gap.label, gap.model, gap.task, gap.metric) == key]
            verdicts = [f"better than {_baseline(gap)}: {verdict_on(gap)}" for gap in mine if _is_claimed(gap)]
            text = "; ".join([f"{number(row.value)} {bounds(row)}".strip(), *verdicts])
            lines.append(f"{row.label}, AUROC, {mean[0].lower()}{mean[1:]}: {text}.")
    lines = lines or ["The runs have no task in common on which a mean could be taken."]
    return [*lines, *_against_controls(comparison, title or (lambda task, _: _short_title(task)))]


def _is_claimed(gap: ComparedDifference) -> bool:
    """Whether the LLM need beat the baseline: a model without an LLM, or another cell; no bound, and no constant."""
    return gap.baseline_model not in BOUNDS and not is_constant(gap.baseline_model)


def _against_controls(comparison: ComparisonFile, title: Title) -> list[str]:
    """Say of every cell's LLM whether it beats all its controls; of the first by how much it loses to which."""
    lines = []
    for label in comparison.labels:
        home = [gap for gap in comparison.differences if (gap.label, gap.baseline_label) == (label, label)]
        leading = [gap for gap in home if gap.metric == LEADS.get(gap.part) and gap.task not in MEANS]
        if held := over_controls(leading):
            reported = over_in_words(held, lambda task: title(task, None), short=label != comparison.labels[0])
            lines.append(f"{label}: {reported}")
    return lines


def comparison_tables(comparison: ComparisonFile) -> list[TerminalTable]:
    """Return every model by task for the terminal, one table per leading metric; means and the LLM have intervals."""
    compared = Compared(comparison)
    return [table for part in LEADS if (table := _terminal_table(compared, part)) is not None]


def _terminal_table(compared: Compared, part: str | None) -> TerminalTable | None:
    rows = [row for row in compared.comparison.rows if (row.metric, row.part) == (LEADS[part], part) and row.n]
    tasks = sorted(dict.fromkeys(row.task for row in rows), key=lambda task: task not in MEANS)
    lines = []
    for member in compared.members:
        held = [compared.row(member, LEADS[part], task, part) for task in tasks]
        known = any(row is not None and row.value is not None for row in held)
        printed = part is not None or not is_constant(member.model)  # a constant has an AUROC of 0.5
        if known and printed and not is_single_head(member.model):
            wide = [task in MEANS or (part is not None and member.model == INJECTED) for task in tasks]
            cells = [_printed(row, interval=interval) for row, interval in zip(held, wide, strict=True)]
            lines.append([member.title, *cells])
    if not lines:
        return None
    what = f"{METRICS[LEADS[part]]}{part_title(part)}"
    table = terminal_table(
        f"{compared.comparison.name}: {what}, mean over seeds [95 % CI]", [""], map(_short_title, tasks), lines
    )
    table.padding = (0, 1, 0, 0)
    for column in table.columns:
        column.no_wrap = True
    return table


def markdown(comparison: ComparisonFile) -> str:
    """Return the comparison as Markdown: a table per task, then the differences."""
    seeds = ", ".join(map(str, sorted({seed for by_label in comparison.seeds.values() for seed in by_label})))
    text = f"Means over the seeds {seeds}; in brackets 95 % intervals over seeds and patients."
    parts = (*PARTS, *(["all"] if comparison.paper else []))
    places = dict.fromkeys((row.task, row.part) for row in comparison.rows if row.part in parts and row.n)
    sections = [line for place in places for line in task_section(comparison, *place)]
    verdicts = "\n".join(f"- {line}" for line in sentences(comparison))
    texts = [f"# {comparison.name}", comparison.description, verdicts, text, *sections]
    return "\n\n".join([*texts, *_follows(comparison), *_gaps(comparison), *routers_in_markdown(comparison)]) + "\n"


def _follows(comparison: ComparisonFile) -> list[str]:
    """A table in Markdown: whether the LLM's answers follow heads and question."""
    lines = []
    for check in comparison.answers:
        ranks = ", ".join(f"{model_title(name)} {number(rho, 2)}" for name, rho in check.rank_correlation.items())
        numbers = [number(check.negation, 2), number(check.paraphrases, 2), str(check.n)]
        lines.append([check.label, _short_title(check.task), ranks or MISSING, *numbers])
    heads = ["model", "task", "rank correlation with heads", "opposite to the question negated", "same to paraphrases"]
    return [f"## {controls.FOLLOWS}", markdown_table([*heads, "n"], lines, "--:")] if lines else []


def task_section(comparison: ComparisonFile, task: str, part: str | None = None) -> tuple[str, str]:
    """Return a task's heading and its Markdown table: every model, then what was published.

    Open and yes/no questions are parts with a table each; what was published is on all.
    """
    rows = tuple(row for row in comparison.rows if (row.task, row.part) == (task, part))
    compared = Compared(comparison.model_copy(update={"rows": rows}))
    used = [name for name in METRICS if any(row.metric == name for row in rows)]
    lines = [[m.title, *(_printed(compared.row(m, name, task, part)) for name in used)] for m in compared.members]
    for row in paper_rows(comparison, task) if comparison.paper and part in (None, "all") else []:
        lines.append([f"*{row.title}*", *(number(row.values.get(name)) for name in used)])
    table = markdown_table(["", *(METRICS[name] for name in used)], lines, "--:")
    questions = ", all questions" if part == "all" else part_title(part)
    return f"## {_short_title(task)}{questions} (n = {rows[0].n})", table


def _gaps(comparison: ComparisonFile) -> list[str]:
    """The differences in Markdown."""
    lines = []
    for gap in comparison.differences:
        if gap.metric in COMPARED and gap.part in LEADING and gap.value is not None:
            value = f"{number(gap.value, signed=True)} {bounds(gap, signed=True)}{' *' * gap.significant}"
            against = f"{model_title(gap.baseline_model)} ({gap.baseline_label})"
            tested = [value.replace("*", "\\*"), number(gap.p), number(gap.p_holm), verdict_on(gap)]
            lines.append([gap.label, against, _short_title(gap.task), *tested])
    table = markdown_table(["model", "better than", "task", "difference", "p", "p (Holm)", "verdict"], lines, "--:")
    note = "\\* p < 0.05 after Holm's correction over all differences of the metric, with at least five seeds."
    return ["## Differences of AUROC, and of token F1 where answers are words", table, note] if lines else []


def _matrices(compared: Compared) -> list[html.Part]:
    """One table per metric: tasks downwards, models to the right."""
    text = "Mean over seeds, below it the 95 % interval over seeds and patients. * differs from the federated-only "
    text += "model of the same runs, † from the first cell: p < 0.05 after Holm's correction, with at least "
    text += f"{MIN_SEEDS} seeds. A 1 marks a model that gave every patient the same answer in at least one run. The "
    text += "last column is the best answer that is the same for everyone."
    members = [it for it in compared.members if not (is_constant(it.model) or is_control(it.model))]
    heads = [*((member.title, member.style) for member in members), (CONSTANT, "constant")]
    columns = [html.Column("Task", style=""), *(html.Column(name, style=f"num name {style}") for name, style in heads)]
    marks = _marks(compared.comparison)

    def entry(member: Member, place: Place) -> html.Cell:
        row = compared.row(member, *place)
        if row is None:
            return html.Cell(MISSING)
        mark = marks.get((row.label, row.model, *place), "")
        return html.Cell(number(row.value), bounds(row), flag="one answer only" if row.single_class else "", marks=mark)

    def line(place: Place) -> html.Row:
        sizes = sorted({row.n for row in compared.comparison.rows if _place(row) == place and row.n})
        size = f"n = {' to '.join(dict.fromkeys(map(str, (sizes[0], sizes[-1]))))}" if sizes else ""
        cells = [*(entry(member, place) for member in members), html.Cell(number(compared.constant(*place)))]
        return html.Row(compared.title(*place[1:]), cells, "mean" if place[1] in MEANS else "", size)

    tables = []
    for metric in TABULATED:
        by_role = {title: compared.places(metric, role) for role, title in ROLES.items()}
        groups = [html.Group(list(map(line, places)), note=title) for title, places in by_role.items() if places]
        tables += [html.Table(METRICS[metric], columns, groups, "matrix", METRICS[metric])] if groups else []
    return html.when(tables, html.Text(text, "soft"), *tables)


def _marks(comparison: ComparisonFile) -> dict[tuple[str | None, ...], str]:
    """Return marks by (label, model, metric, task, part): ``*`` differs from its federation, ``†`` from the first."""
    marks: dict[tuple[str | None, ...], str] = {}
    first = (comparison.labels[:1] or ("",))[0], INJECTED
    for gap in comparison.differences:
        pair = [(gap.label, gap.model), (gap.baseline_label, gap.baseline_model)]
        is_home = pair[1] == (gap.label, FEDERATED)
        others = [one for one in pair if first in pair and one != first and one[1] == INJECTED]
        for one in [pair[0]] * is_home or others if gap.significant else ():
            key = (*one, *_place(gap))
            marks[key] = marks.get(key, "") + ("*" if is_home else "†")
    return marks


def _glance(compared: Compared) -> Iterator[tuple[str, Sequence[str], Sequence[Polygon]]]:
    """Yield per metric the unseen tasks that have it, and the values of every cell and of the best constant."""
    for metric in RANGES:
        places = [place for place in compared.places(metric, "unseen") if place[1] not in MEANS]
        polygons = [Polygon(CONSTANT, "constant", [compared.constant(*place) for place in places])]
        for member in compared.members:
            if member.model == INJECTED:
                values = [row.value if (row := compared.row(member, *place)) else None for place in places]
                polygons.append(Polygon(member.title, member.style, values))
        yield metric, [compared.title(*place[1:]) for place in places], polygons


def _bars(compared: Compared) -> list[html.Part]:
    """A chart per task and metric: bars on the line of the best constant answer, whiskers, and a dot per seed."""
    text = "A bar stands on the dashed line, the best constant answer: its length is what was gained, or lost. "
    text += "Whiskers are 95 % intervals over seeds and patients; dots are single seeds."
    folded: list[html.Part] = []
    for metric in TABULATED:
        figures = []
        unseen = compared.places(metric, "unseen")
        for place in [*compared.places(metric, "trained"), *unseen] if unseen else ():
            bars = []
            for member in compared.drawn:
                if row := compared.row(member, *place):
                    seeds = [value for value in row.per_seed if value is not None]
                    bars.append(Bar(member.title, member.style, row.value, row.ci_low, row.ci_high, seeds))
            title, limits = compared.title(*place[1:]), BAR_LIMITS.get(metric, (0.0, 1.0))
            chart = gain_bars(bars, compared.constant(*place) or 0.0, limits, f"{METRICS[metric]}, {title}")
            figures.append(html.Figure(title, chart))
        folded += html.when(figures, html.Details(METRICS[metric], [html.Figures(figures)], unfolded=not folded))
    legend = html.Figures([], [html.Legend(member.title, member.style) for member in compared.drawn])
    return html.when(folded, html.Text(text, "soft"), legend, *folded)


def _differences(compared: Compared) -> list[html.Part]:
    text = "On the same patients at the same seeds. The verdict rests on the interval. p is two-sided, from the "
    text += "bootstrap; Holm's correction is over all differences of a metric on this page."
    gaps = [gap for gap in compared.comparison.differences if gap.metric in TABULATED and gap.part in PARTS]
    gaps.sort(key=lambda gap: TABULATED.index(gap.metric))
    columns = [*html.columns("Cell", "Better than", "On", style=""), *html.columns("Difference", "p", "p, Holm")]
    columns += html.columns("Verdict", style="")

    def table(rows: Iterable[ComparedDifference]) -> html.Table:
        lines = []
        for gap in rows:
            what = f"{compared.title(gap.task, gap.part)}, {METRICS[gap.metric]}"
            value = f"{number(gap.value, signed=True)} {bounds(gap, 3, signed=True)}"
            cells = [html.Cell(_baseline(gap), style="plain"), html.Cell(what, style="plain")]
            cells += [html.Cell(text) for text in (gap.reason or value, number(gap.p), number(gap.p_holm))]
            lines.append(
                html.Row(gap.label, [*cells, html.Cell(verdict_on(gap), style=verdict_style(verdict_on(gap)))])
            )
        return html.Table("Differences", columns, [html.Group(lines)], "lines")

    means, others = ([gap for gap in gaps if (gap.task in MEANS) == is_mean] for is_mean in (True, False))
    folded = html.when(others, html.Details(f"By task ({len(others)})", [table(others)], unfolded=not means))
    return [html.Text(text if gaps else "Nothing was compared.", "soft"), *html.when(means, table(means)), *folded]


def _paper(compared: Compared) -> list[html.Part]:
    """Our cells, then what others printed, task by task."""
    text = "Published rows are other people's numbers on other data, from single runs: these runs need not reach them. "
    text += "Published constants are computed on the published test sets."
    tasks = dict.fromkeys(row.task for row in compared.comparison.rows if row.part is None and row.task not in MEANS)
    blocks = {task: theirs for task in tasks if (theirs := paper_rows(compared.comparison, task))}
    held = {name for theirs in blocks.values() for row in theirs for name in row.values}
    held |= {row.metric for row in compared.comparison.rows if row.task in blocks}
    metrics = [name for name in PAPER_METRICS if name in held]
    groups = []
    for task, theirs in blocks.items():
        lines = []
        for member in compared.drawn:
            ours = [compared.row(member, name, task) for name in metrics]
            cells: list[html.Cell | str] = [number(row.value) if row else "" for row in ours]
            lines += [html.Row(member.title, [*cells, html.Cell("these runs", style="soft")], member.style)] * any(ours)
        for row in theirs:
            cells = [number(row.values[name]) if name in row.values else "" for name in metrics]
            lines.append(html.Row(method_title(row), [*cells, html.Cell(row.source, style="soft")], "published"))
        groups.append(html.Group(lines, compared.title(task)))
    first, last = html.columns("Model", "Source", style="")
    columns = [first, *html.columns(*(METRICS[name] for name in metrics)), last]
    return html.when(groups, html.Text(text, "soft"), html.Table("The paper's numbers", columns, groups))


def _runs(comparison: ComparisonFile, runs: Sequence[Run]) -> list[html.Part]:
    """The configurations, in the order of the labels, and the settings in which they differ."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(f"{run.folder.parent.name}/{run.folder.name.partition('-seed')[0]}", []).append(run)
    labels = comparison.labels if len(comparison.labels) == len(groups) else tuple(groups)
    trees = [dict(group[0].settings) for group in groups.values()]
    keys = sorted({key for tree in trees for key in tree} - NO_SETTINGS, key=natural)
    keys = [key for key in keys if len({tree.get(key) for tree in trees}) > 1]
    lines = []
    for label, group, tree in zip(labels, groups.values(), trees, strict=True):
        seeds = ", ".join(dict.fromkeys(str(run.study.seed) for run in group))
        facts = [(run.provenance.commit, run.provenance.dirty) for run in group]
        commits = joined(f"{commit[:10]}{' and changes' if dirty else ''}" for commit, dirty in facts if commit)
        texts = [commits or "not recorded", *(tree.get(key, MISSING) for key in keys)]
        cells = [html.Cell(seeds, style="plain"), *(html.Cell(text, style="mono") for text in texts)]
        lines.append(html.Row(label, cells))
    columns = [*html.columns("Cell", "Seeds", "Commit", style=""), *html.columns(*keys, style="mono")]
    caption = "The configurations, and the settings in which they differ"
    return html.when(lines, html.Table("Runs", columns, [html.Group(lines)], "lines", caption))


def _baseline(gap: ComparedDifference) -> str:
    """The baseline's name; the cell's own federation needs no label."""
    if gap.baseline_model == INJECTED:
        return gap.baseline_label
    home = "" if gap.baseline_label == gap.label else f" of {gap.baseline_label}"
    return f"{model_title(gap.baseline_model)}{home}"


def _place(row: ComparedRow | ComparedDifference) -> Place:
    return row.metric, row.task, row.part


def _printed(row: ComparedRow | None, *, interval: bool = True) -> str:
    if row is None or row.value is None:
        return MISSING
    return f"{number(row.value)}{'*' * row.single_class} {bounds(row) if interval else ''}".strip()


def _short_title(task: str) -> str:
    return task.replace("-", " of ") if task in MEANS else task.upper()
