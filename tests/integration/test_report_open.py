"""Tasks that are answered in words, in report and terminal: their own table; the tables of closed tasks stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from medfed.evaluation.score import score_task
from medfed.records.folder import RunFolder, prediction_file
from medfed.records.schema import Prediction, ScoreFile
from medfed.report.html import Table
from medfed.report.page import build_report
from medfed.report.results import all_metrics, headline, open_questions, summary_table
from medfed.report.run import Run
from support.fake_runs import fake_run
from support.worded_answers import FAST, worded


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A fake run with a task that is answered in words."""
    folder = fake_run(tmp_path / "run")
    task, files = worded(), RunFolder(folder)
    rows, differences = score_task(task, 0, FAST)
    scores = files.read(ScoreFile)
    more = {"rows": (*scores.rows, *rows), "differences": (*scores.differences, *differences)}
    files.write(scores.model_copy(update=more))
    lines = [
        Prediction(
            example=example,
            patient=patient,
            question=f"question {number}?",
            truth=task.truths[number],
            responses={model: given[number] for model, given in task.responses.items()},
        )
        for number, (example, patient) in enumerate(zip(task.examples, task.patients, strict=True))
    ]
    files.write_lines(lines, prediction_file("asked"))
    return folder


def test_the_closed_tables_do_not_see_open_tasks(run: Path, tmp_path: Path) -> None:
    plain, with_words = Run(fake_run(tmp_path / "plain")), Run(run)
    assert with_words.scores == plain.scores
    assert headline(with_words) == headline(plain)
    assert all_metrics(with_words) == all_metrics(plain)
    assert with_words.notes == plain.notes == []
    assert open_questions(plain) == []
    assert 'id="open-questions"' not in build_report(tmp_path / "plain" / "demo" / "1a2b3c4d-seed0")


def test_the_open_table_has_every_part_and_the_best_constant(run: Path) -> None:
    (table,) = [part for part in open_questions(Run(run)) if isinstance(part, Table)]
    assert [group.title for group in table.groups] == ["Open questions", "Yes/no questions"]
    for group in table.groups:
        assert [row.head for row in group.rows] == ["Injected LLM", "Most frequent answer", "Best constant answer"]
        assert "better than the best constant answer: " in group.verdict.text
    assert table.groups[0].rows[-1].note == "“left lower lobe”"
    f1 = [column.title for column in table.columns].index("Exact match") - 1
    assert table.groups[1].rows[0].cells[f1].text == "0.500"
    html = build_report(run)
    assert "Injected LLM, likelihood of yes against no on 4 yes/no questions: AUROC 1.000" in html
    assert "left lower lobe" in html
    assert "nrefs:1|case:lc" in html
    assert "question 0?" not in html, "a report quotes no single example"


def test_the_terminal_summary_has_token_f1(run: Path) -> None:
    console = Console(width=220, record=True)
    console.print(summary_table(run))
    (line,) = [line for line in console.export_text(clear=False).splitlines() if "Token F1" in line]
    assert "0.700" in line  # (0.8 + 2) / 4: open questions alone
    assert "ASKED (unseen), open: Token F1" in line
    (line,) = [line for line in console.export_text(clear=False).splitlines() if "ASKED (unseen), yes/no" in line]
    assert "1.000" in line, "of yes and no the likelihoods are ranked"
