"""The README's tables of one finished run of the demo."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
LINE_WIDTH = 120


def results(run: Path) -> str:
    """Return the run's tables, closed and open, and sentences that count what they show."""
    scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    titles = _provenance(run)["titles"]
    rows = scores["rows"]
    return "\n\n".join([closed(rows, titles), answers(rows, titles), reading(rows, scores["differences"])])


def closed(rows: list[Row], titles: Mapping[str, str]) -> str:
    """AUROC and balanced accuracy of closed tasks with 95 % intervals."""
    cells = {(row["task"], row["model"], row["metric"]): row for row in rows if row.get("part") is None}
    tasks = list(dict.fromkeys((row["task"], row["role"], row["n"], row["num_positive"]) for row in cells.values()))
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


def answers(rows: list[Row], titles: Mapping[str, str]) -> str:
    """Token F1 of answers in words, next to the best constant answer."""
    cells = {(r["task"], r["model"], r["part"]): r for r in rows if r.get("part") and r["metric"] == "token_f1"}
    table = [
        "| answers in words, unseen | n | token F1: FedKIM | token F1: best constant answer |",
        "|---|---|---|---|",
    ]
    for task in dict.fromkeys(task for task, *_ in cells):
        pair = [cells.get((task, model, "all")) for model in ("fedkim", "constant-best")]
        if pair[0] is not None:
            table.append(f"| {titles[task]} | {pair[0]['n']} | {cell(pair[0])} | {cell(pair[1])} |")
    return "\n".join(table)


def reading(rows: list[Row], differences: list[Row]) -> str:
    """Sentences on what the tables show, counted from them."""
    gaps = [row for row in differences if (row["model"], row["baseline"]) == ("fedkim", "federated")]
    gaps = [row for row in gaps if row["metric"] == "auroc" and row["value"] is not None]
    above = sum(row["value"] > 0 for row in gaps)
    sure = sum(row["ci_low"] is not None and row["ci_low"] > 0 for row in gaps)
    worse = sum(row["ci_high"] is not None and row["ci_high"] < 0 for row in gaps)
    unseen = [row for row in _of(rows, "fedkim", "auroc") if row["role"] == "unseen"]
    chance = sum(row["ci_low"] is not None and row["ci_low"] > 0.5 for row in unseen)
    text = f"The injected LLM's AUROC is above the federated-only model's on {above} of {len(gaps)} trained tasks. The "
    text += f"interval of the difference is above 0 on {sure} of them, and below 0 on {worse}. "
    text += f"On {chance} of {len(unseen)} unseen closed tasks the LLM's interval is above chance; "
    text += "the federated model has no answer there."
    f1 = {(r["task"], r["model"]): r for r in rows if r["metric"] == "token_f1" and r.get("part") == "all"}
    answered = [task for task, model in f1 if model == "fedkim" and (task, "constant-best") in f1]
    beaten = sum((f1[task, "fedkim"]["value"] or 0) > (f1[task, "constant-best"]["value"] or 0) for task in answered)
    if answered:
        text += f" In words it beats the best constant answer on {beaten} of {len(answered)} tasks."
    return textwrap.fill(text, LINE_WIDTH)


def foundation(run: Path) -> str:
    """Return what the tiny LLM could do before injection, from the run's provenance."""
    facts = _provenance(run)["foundation"]
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
    if row["value"] is None:
        return f"undefined: {row['reason']}"
    if row["ci_low"] is None or row["ci_low"] == row["ci_high"]:
        return f"{row['value']:.2f}"
    return f"{row['value']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"


def _of(rows: list[Row], model: str, metric: str) -> list[Row]:
    return [row for row in rows if (row["model"], row["metric"]) == (model, metric) and row.get("part") is None]


def _provenance(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    return facts
