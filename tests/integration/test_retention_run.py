"""Runs ask the LLM what it kept: files, scores, report, terminal, and all of it without where nothing is asked."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import medfed
from medfed.cli.app import app
from medfed.core.errors import StudyError
from medfed.core.progress import Reporter
from medfed.datasets.examinations import EXAMINATIONS
from medfed.export.model_card import CardFacts, model_card
from medfed.records.folder import RunFolder
from medfed.records.schema import Retained, ScoreFile
from medfed.report.page import build_report
from medfed.report.results import summary_table
from medfed.report.run import Run
from medfed.runs.context import RunPaths
from medfed.runs.pipeline import run_study
from medfed.study.evaluation import RetentionSettings
from medfed.study.study import study_of
from support.finished_runs import QuickRun
from support.studies import QUICK

TASKS = ["knowledge-sample-chat", "knowledge-sample-trained"]
FACTS = CardFacts("lod", "t", "q", "lora", "llm", False, [], {}, {})


def printed(folder: Path) -> str:
    console = Console(width=2000, record=True, quiet=False, file=(folder / "printed").open("w"))
    console.print(summary_table(folder))
    (folder / "printed").unlink()
    return " ".join(console.export_text().split())


def made(quick: QuickRun, place: Path, overrides: list[str]) -> Path:
    study = study_of(deepcopy(QUICK), "quick", overrides)
    return run_study(study, RunPaths(place / "runs", quick.cache), Reporter.silent())


def test_a_run_asks_before_and_after_and_compares(quick: QuickRun) -> None:
    run = RunFolder(quick.folder)
    lines = run.lines(Retained)
    assert [(line.round, line.examination, line.form) for line in lines] == [
        (number, "sample", form) for number in (0, 1) for form in ("chat", "trained")
    ]
    scores = run.read(ScoreFile)
    assert [name for name, facts in scores.tasks.items() if facts.role == "knowledge"] == TASKS
    for task, before, after in zip(TASKS, lines[:2], lines[2:], strict=True):
        table = run.predictions(task)
        assert [line.responses["before"] for line in table] == list(before.responses)
        assert [line.responses["after"] for line in table] == list(after.responses)
        (gap,) = [one for one in scores.differences if one.task == task and one.primary and one.baseline == "before"]
        values = {row.model: row.value for row in scores.rows if row.task == task and row.primary}
        assert gap.value == pytest.approx(values["after"] - values["before"])


def test_report_terminal_card_and_python_say_it(quick: QuickRun) -> None:
    page = build_report(quick.folder)
    assert page.count("Forty questions of the package; trained form") == 1, "in its own section, and in no other"
    assert "What the LLM kept" in page
    table = printed(quick.folder)
    assert "What the LLM kept, after − before: Forty questions of the package; chat form (AUROC)" in table
    assert "LLM before injection" not in table, "no column of its own"
    card = model_card(Run(quick.folder), FACTS, {})
    assert "## What the LLM kept" in card
    assert card.count("Forty questions of the package; chat form") == 1
    loaded = medfed.load_run(quick.folder)
    assert set(loaded.predictions(TASKS[0])["model"]) == {"before", "after"}
    assert "P(yes)" in loaded.predictions(TASKS[0]).columns


def test_a_finished_run_is_examined_by_the_command_and_answers_as_it_did(quick: QuickRun) -> None:
    given = ["foundation", "examine", str(quick.folder), "--sets", "sample", "--cache", str(quick.cache)]
    done = CliRunner().invoke(app, [*given, "--json"])
    assert done.exit_code == 0, done.output
    asked, held = ScoreFile.model_validate_json(done.stdout), RunFolder(quick.folder).read(ScoreFile)
    assert list(asked.rows) == [row for row in held.rows if row.role == "knowledge"]
    assert list(asked.differences) == [gap for gap in held.differences if gap.task in TASKS]
    table = CliRunner().invoke(app, given).stdout
    assert "after − before" in table
    refused = CliRunner().invoke(app, [*given, "--dtype", "float32"])
    assert refused.exit_code != 0


def test_a_run_that_asks_nothing_is_reported(quick: QuickRun, tmp_path: Path) -> None:
    folder = made(quick, tmp_path, ["evaluation.retention.sets=[]"])
    assert not (folder / Retained.NAME).exists()
    assert "What the LLM kept" not in build_report(folder)
    assert "What the LLM kept" not in printed(folder)
    assert "What the LLM kept" not in model_card(Run(folder), FACTS, {})
    patients = [row for row in RunFolder(quick.folder).read(ScoreFile).rows if row.role != "knowledge"]
    assert list(RunFolder(folder).read(ScoreFile).rows) == patients, "asking changes no other number"


def test_looks_in_between_are_models_of_their_own(quick: QuickRun, tmp_path: Path) -> None:
    folder = made(quick, tmp_path, ["rounds.num_rounds=2", "evaluation.retention.every=1"])
    models = {row.model for row in RunFolder(folder).read(ScoreFile).rows if row.task == TASKS[0]}
    assert {"before", "after-round-1", "after"} <= models
    assert "after-round-1" in build_report(folder)


def test_an_absent_set_is_said_before_anything_is_computed(quick: QuickRun, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="MedQA is not here"):
        made(quick, tmp_path, ['evaluation.retention.sets=["medqa"]'])
    assert not list((tmp_path / "runs").glob("*/*/study.json"))


def test_settings_name_the_examinations_that_there_are() -> None:
    names = RetentionSettings.model_fields["sets"].annotation.__args__[0].__args__
    assert set(names) == {"found", *EXAMINATIONS}


def test_scores_without_rows_of_an_examination_are_reported(quick: QuickRun, tmp_path: Path) -> None:
    folder = made(quick, tmp_path, [])
    scores = RunFolder(folder).read(ScoreFile)
    rows = tuple(row for row in scores.rows if row.task != TASKS[0])
    RunFolder(folder).write(scores.model_copy(update={"rows": rows}))
    page = build_report(folder)
    assert "Forty questions of the package; trained form" in page
    assert "Forty questions of the package; chat form" not in page
