"""The README's tables of one finished run of the demo."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from medfed.records.folder import RunFolder
from medfed.records.schema import ProvenanceFile, ScoreFile
from medfed.records.schema import ScoreRow as Row
from medfed.report.results import sentences

LINE_WIDTH = 120


def results(run: Path) -> str:
    """Return the run's tables, closed and open, and the verdicts on it."""
    scores, titles = RunFolder(run).read(ScoreFile), _provenance(run).titles
    return "\n\n".join([closed(scores.rows, titles), answers(scores.rows, titles), reading(scores)])


def closed(rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    """AUROC and balanced accuracy of closed tasks with 95 % intervals."""
    cells = {(row.task, row.model, row.metric): row for row in rows if row.part is None}
    tasks = list(dict.fromkeys((row.task, row.role, row.n, row.num_positive) for row in cells.values()))
    head = "| task | n (positive) | AUROC: FedKIM | AUROC: federated only "
    head += "| balanced accuracy: FedKIM | balanced accuracy: federated only | balanced accuracy: always no |"
    table = [head, "|---|" + "---|" * 6]
    for task, role, count, positive in tasks:
        values = [cell(cells.get((task, model, "auroc"))) for model in ("fedkim", "federated")]
        models = ("fedkim", "federated", "always-no")
        values += [cell(cells.get((task, model, "balanced_accuracy"))) for model in models]
        mark = "" if role == "trained" else " (unseen)"
        table.append(f"| {titles[task]}{mark} | {count} ({positive}) | " + " | ".join(values) + " |")
    return "\n".join(table)


def answers(rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    """Token F1 of answers in words, next to the best constant answer."""
    cells = {(row.task, row.model, row.part): row for row in rows if row.part and row.metric == "token_f1"}
    table = [
        "| answers in words, unseen | n | token F1: FedKIM | token F1: best constant answer |",
        "|---|---|---|---|",
    ]
    for task in dict.fromkeys(task for task, *_ in cells):
        pair = [cells.get((task, model, "all")) for model in ("fedkim", "constant-best")]
        if pair[0] is not None:
            table.append(f"| {titles[task]} | {pair[0].n} | {cell(pair[0])} | {cell(pair[1])} |")
    return "\n".join(table)


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
