"""The README's tables of one finished run of the demo."""

from __future__ import annotations

import textwrap
from pathlib import Path

from medfed.records.folder import RunFolder
from medfed.records.schema import ControlFile, ProvenanceFile, ScoreFile
from medfed.report.results import sentences
from sections import controls

LINE_WIDTH = 120


def results(run: Path) -> str:
    """Return the verdicts on the run, then its tables: the LLM above every control, and what its answers follow."""
    folder = RunFolder(run)
    scores, titles = folder.read(ScoreFile).of(knowledge=False), _provenance(run).titles
    checks = folder.read(ControlFile).answers if folder.exists(ControlFile.NAME) else ()
    tables = controls.tables(controls.of_run(scores), lambda task: sized(scores, task, titles.get(task) or task))
    parts = [reading(scores), *tables, controls.follows(checks, lambda task: titles.get(task) or task)]
    return "\n\n".join(part for part in parts if part)


def sized(scores: ScoreFile, task: str, title: str) -> str:
    """Return a task's title with its test examples; the positive ones in brackets, where it has one question."""
    rows = [row for row in scores.rows if row.task == task and row.n]
    one = next((row for row in rows if row.num_positive is not None and row.part is None), None)
    if one is not None:
        return f"{title}, {one.n} ({one.num_positive})"
    return title


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


def _provenance(run: Path) -> ProvenanceFile:
    return RunFolder(run).read(ProvenanceFile)
