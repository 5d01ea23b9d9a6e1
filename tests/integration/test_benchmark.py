"""The benchmark end to end: bounds, per-client scores, leaderboard; killed, it goes on and redoes nothing."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from medfed.records.folder import RunFolder
from medfed.records.schema import ProvenanceFile, ScoreFile, StudyFile
from support.clocks import until
from support.processes import Process, Ran, run

BASE = """
name = "bench"
job = "benchmark"
train = ["mimic-cxr"]
baselines = ["local", "centralised"]
algorithm = "fedavg"
[twins]
num_patients = 40
[split]
ratios = [5, 2, 0, 3]
official = false
[partition]
num_clients = 2
[rounds]
num_rounds = 2
[encoders]
image = "resnet-mini"
report = "text-mini"
[client]
lr = 1e-3
[evaluation]
num_resamples = 50
watch_every = 0
"""
SWEEP = """
name = "grid"
base = "base.toml"
seeds = [0]
[axes.partition.IID]
[axes.partition.Skewed]
partition = { scheme = "quantity", alpha = 0.5 }
[axes.algorithm.FedAvg]
[axes.algorithm.FedPer]
algorithm = "fedper"
[axes.algorithm.CreamFL]
algorithm = "creamfl"
"""


def command(place: Path, cache: Path) -> list[str]:
    place.mkdir(parents=True, exist_ok=True)
    (place / "base.toml").write_text(BASE, encoding="utf-8")
    (place / "sweep.toml").write_text(SWEEP, encoding="utf-8")
    places = ["--runs", str(place / "runs"), "--cache", str(cache), "--workers", "2"]
    return ["run", str(place / "sweep.toml"), *places]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A sweep whose whole process group is killed once its first run is finished, then run to the end."""
    place = tmp_path_factory.mktemp("whole")
    words = command(place, place / "cache")
    process = Process(words, place / "killed.log")
    until(lambda: any(place.glob("runs/bench/*/DONE")) or process.status is not None, told=process.told)
    assert process.status is None, process.told()
    process.send_group(signal.SIGKILL)
    process.wait()
    assert process.left_behind() == []
    finished = {str(path): path.stat().st_mtime_ns for path in place.glob("runs/bench/*/DONE")}
    (place / "finished.json").write_text(json.dumps(finished), encoding="utf-8")
    return place, run(words, place / "whole.log")


Whole = tuple[Path, Ran]


def test_a_killed_grid_goes_on_and_redoes_no_finished_cell(whole: Whole) -> None:
    place, done = whole
    assert done.status == 0, done.text
    before = json.loads((place / "finished.json").read_text(encoding="utf-8"))
    assert 0 < len(before) < 6
    assert all(Path(path).stat().st_mtime_ns == mark for path, mark in before.items())
    assert f"finished before: {len(before)} of 6" in done.text
    assert len(list((place / "runs" / "bench").glob("*/DONE"))) == 6


def test_no_cell_is_missing_and_the_report_ranks(whole: Whole) -> None:
    place, done = whole
    board = json.loads((place / "runs" / "grid" / "leaderboard.json").read_text(encoding="utf-8"))
    assert board["algorithms"] == ["FedAvg", "FedPer", "CreamFL"]
    assert [block["name"] for block in board["blocks"]] == [["IID"], ["Skewed"]]
    for block in board["blocks"]:
        assert all(block["values"][name]["mean"] is not None for name in board["algorithms"])
        assert {"centralised", "local"} < block["bounds"].keys()
    assert (place / "runs" / "grid" / "report.html").is_file()
    assert "average rank" in done.text


def test_scores_hold_every_client_and_what_a_run_costs(whole: Whole) -> None:
    up = {}
    for study in (whole[0] / "runs" / "bench").glob("*/study.json"):
        run = RunFolder(study.parent)
        scores = run.read(ScoreFile).rows
        row = next(row for row in scores if row.primary and row.model == "federated")
        assert row.clients.keys() == {"client-0", "client-1"}
        assert row.ci_low <= row.value <= row.ci_high
        assert len(run.predictions("mimic-cxr")) == row.n
        cost = run.read(ProvenanceFile).cost
        assert cost.peak_memory_bytes > 0
        up[run.read(StudyFile).settings["algorithm"]["name"]] = cost.bytes_up
    print(f"CreamFL sends representations, FedPer all but the heads, FedAvg everything: {up}")
    assert up["creamfl"] < up["fedper"] < up["fedavg"]


def test_a_report_text_leaves_no_trace_in_the_run(whole: Whole) -> None:
    reports = [path.read_text(encoding="utf-8") for path in (whole[0] / "cache").rglob("s*.txt")]
    sentences = {line.strip() for text in reports for line in text.split("\n") if len(line) > 25}
    assert len(sentences) > 10
    for path in (whole[0] / "runs").rglob("*"):
        if path.suffix in (".json", ".jsonl", ".log", ".html", ".md"):
            text = path.read_text(encoding="utf-8")
            assert not [line for line in sentences if line in text], path
