"""The typed run folder: what is written is read back, version 1 is read as today's, other versions get one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from medfed.core.errors import RunError
from medfed.records.folder import RunFolder, prediction_file
from medfed.records.schema import (
    FILES,
    LINES,
    CardFile,
    ClientRound,
    ComparisonFile,
    Development,
    File,
    InjectionFile,
    LeaderboardFile,
    Line,
    NormalisationFile,
    Prediction,
    ProvenanceFile,
    Round,
    ScoreFile,
    ScoreRow,
    StudyFile,
    TaskFacts,
    json_schemas,
)
from sections import run_folder

DOCS = Path(__file__).parents[2] / "docs"
CLOSED_ROW = {
    "model": "fedkim",
    "task": "cd",
    "role": "trained",
    "metric": "auroc",
    "n": 40,
    "num_positive": 13,
    "higher_is_better": True,
    "value": 0.675,
    "ci_low": 0.574,
    "ci_high": 0.8,
    "reason": None,
    "single_class": True,
}


def wrote(folder: Path, name: str, *values: object) -> RunFolder:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return RunFolder(folder)


def test_a_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    row = ScoreRow(task="cd", model="fedkim", metric="auroc", value=0.1 + 0.2, n=3, clients={"a": None, "b": 1.0})
    scores = ScoreFile(tasks={"cd": TaskFacts(title="COVID", answers=("No", "Yes"))}, rows=(row,))
    run.write(scores)
    assert run.read(ScoreFile) == scores
    assert json.loads((tmp_path / "scores.json").read_text())["schema_version"] == "2"


def test_a_line_keeps_the_form_it_was_given(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first = Prediction(example="e", patient="p", truth=1, responses={"heads": [0.25, 0.75]})
    run.write_lines([first], prediction_file("cd"))
    run.append(Round, [Round(round=1, clients=(ClientRound(client="a", losses={"cd": math.nan}),))])
    run.append(Round, [Round(round=2)])
    assert run.predictions("cd") == [first]
    assert "client" not in json.loads((tmp_path / "predictions" / "cd.jsonl").read_text())
    assert [line.round for line in run.lines(Round)] == [1, 2]
    assert run.lines(Round)[0].clients[0].losses == {"cd": None}, "JSON has no NaN"
    run.drop_after(Round, 1)
    assert [line.round for line in run.lines(Round)] == [1]


def test_a_field_that_no_record_names_is_refused() -> None:
    with pytest.raises(ValueError, match="extra"):
        ScoreRow(task="cd", model="m", metric="auroc", vaule=1.0)  # type: ignore[call-arg]


@pytest.mark.parametrize("version", ["3", "0", "next", 7])
def test_a_folder_of_another_version_is_refused_in_one_sentence(tmp_path: Path, version: object) -> None:
    run = wrote(tmp_path, "study.json", {"schema_version": version, "name": "s", "surprise": {}})
    wrote(tmp_path, "rounds.jsonl", {"epoch": 1})
    for read in (lambda: run.read(StudyFile), lambda: run.lines(Round), run.check_version, run.require_done):
        with pytest.raises(RunError, match="reads 1 and 2") as caught:
            read()
        assert str(tmp_path) in str(caught.value)
        assert caught.value.hint


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', '{"schema_version": "2", "rows": 3}'])
def test_a_damaged_file_names_itself(tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=r"scores\.json"):
        RunFolder(tmp_path).read(ScoreFile)


def test_a_damaged_line_names_itself(tmp_path: Path) -> None:
    run = wrote(tmp_path, "rounds.jsonl", {"round": 1}, {"clients": []})
    with pytest.raises(RunError, match="line 2: round"):
        run.lines(Round)


def test_version_1_scores_of_an_injection_run(tmp_path: Path) -> None:
    open_row = {**CLOSED_ROW, "task": "mr", "metric": "token_f1", "part": "all", "num_positive": None, "answer": None}
    rows = [CLOSED_ROW, {**CLOSED_ROW, "model": "always-no"}, {**CLOSED_ROW, "model": "always-yes"}, open_row]
    gap = {**{name: value for name, value in CLOSED_ROW.items() if name != "single_class"}, "baseline": "federated"}
    wrote(tmp_path, "provenance.json", {"titles": {"cd": "COVID-19 detection"}})
    found = wrote(tmp_path, "scores.json", {"rows": rows, "differences": [gap]}).read(ScoreFile)
    assert found.tasks["cd"] == TaskFacts(title="COVID-19 detection", kind="classification", answers=("no", "yes"))
    assert found.tasks["mr"].kind == "questions"
    first = found.rows[0]
    assert (first.value, first.ci_low, first.title, first.primary) == (0.675, 0.574, "AUROC", True)
    assert (found.differences[0].baseline, found.differences[0].value) == ("federated", 0.675)


def test_version_1_scores_of_a_benchmark(tmp_path: Path) -> None:
    row = {
        "task": "brats",
        "model": "federated",
        "metric": "dice",
        "title": "Dice",
        "higher_is_better": True,
        "primary": True,
        "value": 0.5,
        "ci_low": 0.4,
        "ci_high": 0.6,
        "n": 11,
        "num_patients": 9,
        "clients": {"client-0": 0.4, "client-1": None},
        "worst": 0.4,
        "worst_client": "client-0",
        "reason": None,
    }
    found = wrote(tmp_path, "scores.json", {"rows": [row], "differences": []}).read(ScoreFile)
    assert found.tasks["brats"].kind == "segmentation"
    assert (found.rows[0].clients, found.rows[0].role) == ({"client-0": 0.4, "client-1": None}, "trained")


def test_version_1_predictions_of_closed_and_open_questions(tmp_path: Path) -> None:
    wrote(tmp_path, "predictions/cd.jsonl", {"example": "e", "patient": "p", "target": 1, "scores": {"m": [0.1, 0.9]}})
    line = {"example": "e", "patient": "p", "question": "Is it?", "reference": "no", "closed": True, "target": 0}
    run = wrote(tmp_path, "predictions/mr.jsonl", {**line, "answers": {"m": "No"}, "scores": {"m": [0.7, 0.3]}})
    (first,), (second,) = run.predictions("cd"), run.predictions("mr")
    assert (first.truth, first.responses) == (1, {"m": [0.1, 0.9]})
    assert second.truth == {"reference": "no", "closed": True, "target": 0}
    assert second.responses == {"m": {"text": "No", "probabilities": [0.7, 0.3]}}
    assert second.question == "Is it?"


def test_version_1_logs_and_normalisation(tmp_path: Path) -> None:
    wrote(tmp_path, "development.jsonl", {"round": 1, "model": "m", "task": "cd", "auroc": 0.5, "balanced_accuracy": 1})
    run = wrote(tmp_path, "normalisation.json", {"image": {"count": [2.0], "total": [1.0], "squares": [1.0]}})
    assert run.lines(Development)[0].values == {"auroc": 0.5, "balanced_accuracy": 1.0}
    assert run.read(NormalisationFile).moments["image"].total == (1.0,)


def test_version_1_comparison_and_leaderboard(tmp_path: Path) -> None:
    row = {"label": "a", "model": "fedkim", "task": "cd", "metric": "ece", "part": None, "higher_is_better": False}
    gap = {"label": "a", "model": "fedkim", "baseline_label": "b", "baseline_model": "fedkim"}
    gap |= {"task": "cd", "metric": "ece", "part": None, "value": -0.1}
    wrote(tmp_path, "comparison.json", {"labels": ["a", "b"], "rows": [row], "differences": [gap]})
    standing = {"mean": 0.5, "std": None, "worst_client": 0.4, "seeds": {"0": 0.5}, "intervals": [[0.4, None]]}
    costs = {"bytes_up": 3.0, "bytes_down": 4.0, "train_seconds": 1.0, "round_seconds": 2.0, "peak_memory_bytes": 5.0}
    block = {"name": ["BraTS"], "task": "brats", "metric": "dice", "title": "Dice", "higher_is_better": True, "n": 1}
    block |= {"values": {"FedAvg": {**standing, **costs}}, "bounds": {"local": standing}}
    run = wrote(tmp_path, "leaderboard.json", {"algorithms": ["FedAvg"], "blocks": [block]})
    assert run.read(ComparisonFile).differences[0].higher_is_better is False
    (found,) = run.read(LeaderboardFile).blocks
    assert found.values["FedAvg"].cost is not None
    assert found.values["FedAvg"].cost.bytes_down == 4.0
    assert found.bounds["local"].cost is None


@pytest.mark.parametrize("kind", FILES)
def test_an_empty_object_of_version_1_has_every_default(tmp_path: Path, kind: type[File]) -> None:
    if kind in (ComparisonFile, LeaderboardFile, InjectionFile):
        pytest.skip("their version 1 always had rows, blocks and offsets")
    assert wrote(tmp_path, kind.NAME, {}).read(kind) == kind()


def test_what_version_1_wrote_and_nobody_read_is_dropped(tmp_path: Path) -> None:
    found = wrote(tmp_path, "provenance.json", {"medfed": "0.1.0", "colour": "blue"}).read(ProvenanceFile)
    assert found.medfed == "0.1.0"
    assert wrote(tmp_path, "cards.json", {"rule": "r", "more": 1}).read(CardFile).rule == "r"


def test_the_published_schemas_and_their_page_are_current() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "schema").iterdir()}
    assert written == run_folder.schema_files(), "run: make docs"
    assert (DOCS / "run-folder.md").read_text(encoding="utf-8") == run_folder.page(), "run: make docs"
    assert len(json_schemas()) == len(written), "two files of one name"


def test_every_file_and_line_of_the_package_is_published() -> None:
    for listed, kind in ((FILES, File), (LINES, Line)):
        ours = [one for one in kind.__subclasses__() if one.__module__.startswith("medfed.")]
        assert set(listed) == set(ours), "a record that FILES or LINES lacks has no schema and no page"
