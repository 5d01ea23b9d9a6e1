"""The open tasks in report and terminal: their own table, and the tables of closed tasks as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from test_answer_scores import FAST, predictions

from medfed.evaluation.answers import answer_records, answer_rows
from medfed.report.html import build_report
from medfed.report.open_questions import open_blocks
from medfed.report.read import read_run
from medfed.report.tables import all_metrics, headline, summary_table
from support.fake_runs import fake_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A fake run with an open task beside its closed ones."""
    folder = fake_run(tmp_path / "run")
    scores = json.loads((folder / "scores.json").read_text())
    found = answer_rows([predictions()], 0, FAST)
    (folder / "scores.json").write_text(json.dumps({name: scores[name] + found[name] for name in scores}))
    lines = [json.dumps(record) for record in answer_records(predictions(), "salt")]
    (folder / "predictions" / "asked.jsonl").write_text("\n".join(lines))
    return folder


def test_the_closed_tables_do_not_see_open_tasks(run: Path, tmp_path: Path) -> None:
    plain = read_run(fake_run(tmp_path / "plain"))
    files = read_run(run)
    assert files.notes == plain.notes, "an open task's lines are no mistake"
    assert files.scores == plain.scores
    assert files.predictions == plain.predictions
    for role in ("trained", "unseen"):
        assert [block.title for block in headline(files, role)] == [block.title for block in headline(plain, role)]
    assert [block.title for block in all_metrics(files)] == [block.title for block in all_metrics(plain)]
    assert open_blocks(plain) == []
    assert 'id="open-questions"' not in build_report(tmp_path / "plain")


def test_the_open_table_shows_every_part_with_the_best_constant_beside(run: Path) -> None:
    (block,) = open_blocks(read_run(run))
    assert [part.title for part in block.parts] == ["All questions", "Closed questions", "Open questions"]
    for part in block.parts:
        assert [row.title for row in part.rows] == ["Injected LLM", "Most frequent answer", "Best constant answer"]
        assert "the best constant answer" in part.note
    assert block.parts[2].rows[-1].said == "left lower lobe"
    assert block.parts[1].rows[0].cells[1][0] == "0.500"
    assert block.likelihood[0].startswith(
        "Injected LLM, likelihood of yes against no on 4 yes/no questions: AUROC 1.000"
    )
    html = build_report(run)
    assert "left lower lobe" in html
    assert "nrefs:1|case:lc" in html
    assert "question 0?" not in html, "a report quotes no single example"


def test_the_terminal_summary_has_token_f1(run: Path) -> None:
    console = Console(width=220, record=True)
    console.print(summary_table(run))
    (line,) = [line for line in console.export_text().splitlines() if "token F1" in line]
    assert "0.600" in line  # (2 + 0.8 + 2) / 8
    assert "the best constant answer" in line
