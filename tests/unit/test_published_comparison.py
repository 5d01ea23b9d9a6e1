"""Ours with the paper's: the right published rows stand there, shared baselines come once, stars are few."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from medfed.records.schema import ComparedDifference, ComparisonFile
from medfed.report.comparison import comparison_tables, markdown
from medfed.report.published import paper_rows

CELLS = {
    "FedAvg · FedKIM": {"backbone": "FedAvg", "method": "FedKIM"},
    "FedAvg · FedPlug": {"backbone": "FedAvg", "method": "FedPlug"},
    "FedProx · FedKIM": {"backbone": "FedProx", "method": "FedKIM"},
}


def row(label: str, model: str, value: float, task: str = "ead") -> dict[str, Any]:
    return {
        "label": label,
        "model": model,
        "task": task,
        "role": "trained",
        "metric": "auroc",
        "part": None,
        "value": value,
        "ci_low": value - 0.1,
        "ci_high": value + 0.1,
        "per_seed": [value],
        "n": 100,
        "num_seeds": 1,
        "single_class": model.startswith("always"),
        "higher_is_better": True,
        "reason": None,
    }


def comparison(paper: list[str]) -> ComparisonFile:
    values = {"FedAvg · FedKIM": 0.81, "FedAvg · FedPlug": 0.72, "FedProx · FedKIM": 0.83}
    rows = [row(label, "fedkim", value) for label, value in values.items()]
    rows += [row(label, "federated", 0.9 if "FedAvg" in label else 0.91) for label in CELLS]
    rows += [row(label, "centralised", 0.95) for label in CELLS]
    rows += [row(label, "always-yes", 0.5) for label in CELLS]
    difference = row("FedAvg · FedKIM", "fedkim", -0.09)
    difference |= {"baseline_label": "FedAvg · FedKIM", "baseline_model": "federated"}
    difference |= {"p": 0.001, "p_holm": 0.04, "significant": True}
    difference = {name: value for name, value in difference.items() if name in ComparedDifference.model_fields}
    seeds = {label: [0] for label in CELLS}
    head = {"name": "table", "description": "", "labels": list(CELLS), "seeds": seeds, "cells": CELLS, "paper": paper}
    return ComparisonFile.model_validate({**head, "rows": rows, "differences": [difference]})


def test_published_rows_are_those_of_the_cells_and_the_named_table() -> None:
    rows = {row.title: row.values for row in paper_rows(comparison(["Table 3"]), "ead")}
    print("EAD, Table 3: FedKIM 44.75 (FedAvg), 58.46 (FedProx); Table 7: 58.46 (FedAvg); always yes 58.47")
    source = "Wang et al. 2024 (FedKIM), Table 3"
    assert rows[f"FedKIM, FedAvg, {source}"]["accuracy"] == 0.4475
    assert rows[f"FedKIM, FedProx, {source}"]["accuracy"] == 0.5846
    assert f"FedPlug, FedAvg, {source}" in rows
    assert not [title for title in rows if title.startswith("FedPlug_L") or "Table 7" in title]
    assert [values["accuracy"] for title, values in rows.items() if title.startswith("Always yes")] == [0.5847]
    single = {row.title: row.values for row in paper_rows(comparison(["Table 7"]), "ead")}
    assert single["FedKIM, FedAvg, Wang et al. 2024 (FedKIM), Table 7"]["accuracy"] == 0.5846


def test_a_comparison_with_no_paper_has_no_published_rows() -> None:
    assert "Wang et al." not in markdown(comparison([]))
    assert "Wang et al." in markdown(comparison(["Table 3"]))


def test_a_baseline_that_cells_share_comes_once_under_what_they_have_in_common() -> None:
    text = markdown(comparison(["Table 3"]))
    lines = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert lines.count("FedAvg · FedKIM") == 2  # in the table, and in the difference
    assert lines.count("Federated-only (FedAvg)") == 1
    assert lines.count("Federated-only (FedProx · FedKIM)") == 1
    assert lines.count("Centralised") == 1
    assert lines.count("Always yes") == 1


def test_values_intervals_flags_and_stars_are_printed() -> None:
    text = markdown(comparison(["Table 3"]))
    assert "| FedAvg · FedKIM | 0.810 [0.71, 0.91] |" in text
    assert "| Always yes | 0.500* [0.40, 0.60] |" in text
    assert "−0.090 [−0.19, +0.01] \\* | 0.001 | 0.040 |" in text


def test_the_terminal_table_fits_and_has_every_cell() -> None:
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(*comparison_tables(comparison(["Table 3"])))
    assert all(label in capture.get() for label in CELLS)
    assert "Centralised" in capture.get()
