"""The README's tables of one finished run of the demo."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from medfed.records.folder import RunFolder
from medfed.records.schema import ControlFile, ProvenanceFile, ScoreFile
from medfed.records.schema import ScoreRow as Row
from medfed.report.models import model_title
from medfed.report.results import sentences
from medfed.report.text import number

LINE_WIDTH = 120
COLUMNS = {
    "fedkim": "medfed",
    "federated": "federated only",
    "reuse/nearest": "nearest head reused",
    "count": "count of abnormal values",
    "blind/other": "medfed, another patient's data",
}
"""Models of the table of closed tasks; a constant answer has an AUROC of 0.5."""
COLUMNS_IN_WORDS = {
    "fedkim": "medfed",
    "blind/other": "medfed, another patient's data",
    "blind/none": "medfed, no patient",
    "constant-best": "best constant answer",
}


def results(run: Path) -> str:
    """Return the run's tables, closed and open, and the verdicts on it."""
    scores, titles = RunFolder(run).read(ScoreFile), _provenance(run).titles
    tables = [closed(scores.rows, titles), answers(scores.rows, titles), follows(run, titles), reading(scores)]
    return "\n\n".join(table for table in tables if table)


def closed(rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    """AUROC of closed tasks with 95 % intervals: the LLM and the other models that a run has."""
    cells = {(row.task, row.model): row for row in rows if row.part is None and row.metric == "auroc"}
    tasks = list(dict.fromkeys((row.task, row.role, row.n, row.num_positive) for row in cells.values()))
    columns = {name: title for name, title in COLUMNS.items() if any(model == name for _, model in cells)}
    table = [f"| AUROC, n (positive) | {' | '.join(columns.values())} |", "|---|" + "---|" * len(columns)]
    for task, role, count, positive in tasks:
        values = [cell(cells.get((task, model))) for model in columns]
        mark = "" if role == "trained" else " (unseen)"
        table.append(f"| {titles[task]}{mark}, {count} ({positive}) | {' | '.join(values)} |")
    return "\n".join(table)


def answers(rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    """Token F1 of open questions and AUROC of yes/no questions, apart, also without the patient."""
    cells = {(row.task, row.part, row.metric, row.model): row for row in rows if row.part}
    columns = {name: title for name, title in COLUMNS_IN_WORDS.items() if any(key[3] == name for key in cells)}
    table = [f"| questions with words for answers, unseen, n | {' | '.join(columns.values())} |"]
    table.append("|---|" + "---|" * len(columns))
    for task in dict.fromkeys(task for task, *_ in cells):
        for part, metric, title in (("open", "token_f1", "open, token F1"), ("closed", "auroc", "yes/no, AUROC")):
            mine = cells.get((task, part, metric, "fedkim"))
            if mine is not None and mine.n:
                values = [cell(cells.get((task, part, metric, model))) for model in columns]
                table.append(f"| {titles[task]}, {title}, {mine.n} | {' | '.join(values)} |")
    return "\n".join(table)


def follows(run: Path, titles: Mapping[str, str]) -> str:
    """Whether the LLM's answers follow the heads, the question's sense, its wording; empty for a run without them."""
    folder = RunFolder(run)
    checks = folder.read(ControlFile).answers if folder.exists(ControlFile.NAME) else ()
    table = [
        "| the LLM's answers | rank correlation with the heads | opposite to the question negated "
        "| same to paraphrases | n |",
        "|---|---|---|---|---|",
    ]
    for check in checks:
        ranks = ", ".join(
            f"{model_title(name).lower()} {number(rho, 2)}" for name, rho in check.rank_correlation.items()
        )
        cells = [ranks or "–", number(check.negation, 2), number(check.paraphrases, 2), str(check.n)]
        table.append(f"| {titles[check.task]} | {' | '.join(cells)} |")
    return "\n".join(table) if checks else ""


def reading(scores: ScoreFile) -> str:
    """The verdicts on the run, one sentence per kind of task."""
    return textwrap.fill(" ".join(sentences(scores)), LINE_WIDTH)


def foundation(run: Path) -> str:
    """Return what the tiny LLM could do before injection, from the run's provenance."""
    facts = _provenance(run).foundation
    closed_facts, open_facts = facts["closed_questions"], facts["open_questions"]
    lines = [
        "| the tiny LLM alone, on text it was not trained on | it | best constant answer | n |",
        "|---|---|---|---|",
    ]
    for kind, title in (("taught_findings", "findings it was taught"), ("held_out_findings", "findings held out")):
        facts_of_kind = closed_facts[kind]
        name = f"yes or no about a written line, {title}: balanced accuracy"
        lines.append(f"| {name} | {facts_of_kind['balanced_accuracy']:.2f} | 0.50 | {facts_of_kind['n']} |")
    name = "questions answered in words about a written line: token F1"
    lines.append(
        f"| {name} | {open_facts['token_f1']:.2f} | {open_facts['constant_token_f1']:.2f} | {open_facts['n']} |"
    )
    before, after = facts["perplexity_before"], facts["perplexity_after"]
    size = f"{facts['num_parameters'] / 1e6:.1f} million parameters, perplexity {before:,.0f} → {after:.1f}"
    return "\n".join([*lines, "", f"({size} in {facts['cpu_seconds']:.0f} CPU seconds of pre-training.)"])


def cell(row: Row | None) -> str:
    """Return a value with its interval, or why there is none."""
    if row is None:
        return "–"
    if row.value is None:
        return f"undefined: {row.reason}"
    if row.ci_low is None or row.ci_high is None or row.ci_low == row.ci_high:
        return f"{row.value:.2f}"
    return f"{row.value:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}]"


def _provenance(run: Path) -> ProvenanceFile:
    return RunFolder(run).read(ProvenanceFile)
