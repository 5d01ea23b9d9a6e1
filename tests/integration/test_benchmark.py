"""The benchmark end to end: bounds, per-client scores, leaderboard; killed, it goes on and redoes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medfed.records.folder import RunFolder
from medfed.records.schema import ProvenanceFile, ScoreFile, StudyFile

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
    return [sys.executable, "-m", "medfed", "run", str(place / "sweep.toml"), *places]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A sweep whose whole process group is killed once its first run is finished, then run to the end."""
    place = tmp_path_factory.mktemp("whole")
    words = command(place, place / "cache")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 240
    while not list((place / "runs").glob("bench/*/DONE")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)
    finished = {path: path.stat().st_mtime_ns for path in (place / "runs").glob("bench/*/DONE")}
    (place / "finished.json").write_text(
        json.dumps({str(path): mark for path, mark in finished.items()}), encoding="utf-8"
    )
    return place, subprocess.run(words, capture_output=True, text=True, check=False)


Whole = tuple[Path, subprocess.CompletedProcess[str]]


def test_a_killed_grid_goes_on_and_redoes_no_finished_cell(whole: Whole) -> None:
    place, done = whole
    assert done.returncode == 0, done.stdout + done.stderr
    before = json.loads((place / "finished.json").read_text(encoding="utf-8"))
    assert 0 < len(before) < 6
    assert all(Path(path).stat().st_mtime_ns == mark for path, mark in before.items())
    assert f"finished before: {len(before)} of 6" in done.stdout
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
    assert "average rank" in done.stdout


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
