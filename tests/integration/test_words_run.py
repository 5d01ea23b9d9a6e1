"""A run whose LLM weighs findings: no injection, pictures of a user's own file, weights that answer a stay."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from typer.testing import CliRunner

from medfed.cli.app import app
from medfed.core.progress import Reporter
from medfed.evaluation.controls import leading
from medfed.records.folder import RunFolder
from medfed.records.schema import ControlFile, ScoreFile, WordsFile
from medfed.report.page import build_report
from medfed.report.results import summary_table
from medfed.runs.context import RunPaths
from medfed.runs.pipeline import run_study
from medfed.study.study import Study, load_study

STUDY = """
name = "toy-words"
job = "words"
train = ["mp"]
unseen = ["sp"]
baselines = []
algorithm = "fedavg"
twins = { num_patients = 160 }
split = { ratios = [2, 2, 1, 5] }
partition = { num_clients = 2 }
rounds = { num_rounds = 1 }
foundation = { kind = "tiny", num_steps = 2, width = 32, num_layers = 1, vocab_size = 400 }
evaluation = { num_resamples = 20 }

[words]
findings = ["mine.toml"]
pictures = ["fever.toml"]
references = ["anemia", "stroke"]
keep = 0.5

[encoders]
vitals = "transformer"
labs = "transformer"
input = "transformer"
output = "transformer"
"""
FINDINGS = """
"high temperature" = { modality = "vitals", measure = "temp.high", above = 38, unit = "°C", source = "by us" }
"low temperature" = { modality = "vitals", measure = "temp.low", below = 36, unit = "°C", source = "by us" }
"high heart rate" = { modality = "vitals", measure = "hr.high", above = 100, unit = "/min", source = "by us" }
"rising lactate" = { modality = "labs", measure = "lact.change", above = 1, unit = "mmol/L", source = "by us" }
"""
PICTURES = """
[fast-heart]
dataset = "yaib-aki"
modalities = ["vitals", "labs", "input", "output"]
rule = "hr > 110"
units = { hr = "/min" }
source = "by us"

[low-pressure]
dataset = "yaib-aki"
modalities = ["vitals", "labs", "input", "output"]
rule = "map < 65"
source = "by us"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("words")
    for name, text in {"study.toml": STUDY, "mine.toml": FINDINGS, "fever.toml": PICTURES}.items():
        (place / name).write_text(text, encoding="utf-8")
    paths = RunPaths(place / "runs", place / "cache")
    return run_study(load_study(place / "study.toml"), paths, Reporter.silent())


def test_every_unseen_task_has_words_and_controls(folder: Path) -> None:
    models = set(RunFolder(folder).predictions("fast-heart")[0].responses)
    expected = {
        "words",
        "words+equal",
        "words/equal",
        "words/other",
        "words/ceiling",
        "count",
        "reuse/mp",
        "reuse/nearest",
    }
    assert expected <= models
    assert "fedkim" not in models
    assert set(RunFolder(folder).predictions("mp")[0].responses) >= {"federated"}
    assert "words" in RunFolder(folder).predictions("sp")[0].responses


def test_the_words_are_compared_with_every_other_model(folder: Path) -> None:
    gaps = [one for one in RunFolder(folder).read(ScoreFile).differences if one.task == "fast-heart" and one.primary]
    assert {one.baseline for one in gaps if one.model == "words"} >= {"count", "words/other", "reuse/nearest"}
    assert leading(["words", "count"]) == "words"
    assert leading(["fedkim", "words"]) == "fedkim"


def test_means_over_the_pictures_are_those_of_the_rows(folder: Path) -> None:
    run = RunFolder(folder)
    rows = {(row.model, row.task): row.value for row in run.read(ScoreFile).rows if row.metric == "auroc"}
    means = run.read(WordsFile).means
    by_model = {one.model: one.value for one in means if one.baseline is None}
    pictures = ("fast-heart", "low-pressure")
    for model in ("words", "count", "reuse/mp"):
        assert by_model[model] == pytest.approx(np.mean([rows[model, task] for task in pictures]))
    (gap,) = [one for one in means if (one.model, one.baseline) == ("words", "count")]
    assert gap.value == pytest.approx(by_model["words"] - by_model["count"])
    assert gap.num_tasks == 2


def test_the_terminal_has_the_words_and_their_mean_over_the_pictures(folder: Path) -> None:
    console = Console(width=2000, record=True, file=StringIO())
    console.print(summary_table(folder))
    text = " ".join(console.export_text().split())
    means = {one.model: one.value for one in RunFolder(folder).read(WordsFile).means if one.baseline is None}
    assert f"mean AUROC over 2 clinical pictures {means['words']:.3f}" in text
    assert all(title in text for title in ("Findings weighed by the LLM", "Count of abnormal values", "Nearest head"))


def test_weights_are_on_record_and_no_patient_is(folder: Path) -> None:
    record = RunFolder(folder).read(WordsFile)
    assert [one.task for one in record.pictures] == ["sp", "fast-heart", "low-pressure"]
    assert record.llms == {"words": "tiny"}
    assert set(record.pictures[1].scale) == {"high temperature", "low temperature", "high heart rate", "rising lactate"}
    assert RunFolder(folder).read(ControlFile).answers == ()
    page = build_report(folder)
    assert "Findings weighed by the LLM" in page
    assert "fast heart: " in page


def test_the_study_of_the_record_is_the_study(folder: Path) -> None:
    settings = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    del settings["schema_version"]
    study = Study.model_validate(settings)
    assert [task.name for task in study.picture_tasks] == ["fast-heart", "low-pressure"]


def test_a_run_without_weighed_findings_is_told_apart(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_bytes((folder / "study.json").read_bytes())
    refused = CliRunner().invoke(app, ["words", str(tmp_path)])
    assert refused.exit_code != 0
    assert "no findings are weighed in this run" in str(refused.exception or refused.output)


def test_the_command_prints_weights_and_answers_a_stay(folder: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    table = run(app, ["words", str(folder)])
    assert table.exit_code == 0, table.output
    assert "words − count" in table.output
    stay, edited = tmp_path / "stay.csv", tmp_path / "words.json"
    pl.DataFrame({"hour": [0, 1], "hr": [80.0, 160.0], "temp": [37.0, 37.0]}).write_csv(stay)
    content = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    content["pictures"][1]["weights"]["words"] = {"high heart rate": 2.0}
    edited.write_text(json.dumps(content), encoding="utf-8")
    task = ["words", str(folder), "--task", "fast-heart"]
    answer = run(app, [*task, "--icu", str(stay), "--weights", str(edited)])
    assert answer.exit_code == 0, answer.output
    assert "fast heart: high heart rate" in answer.output
    assert "high heart rate" in run(app, [*task, "--weights", str(edited)]).output
