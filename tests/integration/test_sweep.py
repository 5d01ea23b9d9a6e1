"""A sweep end to end: shared baselines, a failing cell, interruption without orphans, and FedKIM without clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from medfed.records.folder import RunFolder
from medfed.records.schema import Round, Step

BASE = """
name = "tiny"
train = ["cd", "lod"]
unseen = ["ped"]
baselines = ["federated", "local", "centralised"]
algorithm = "fedavg"
[twins]
num_patients = 50
[partition]
num_clients = 2
[rounds]
num_rounds = 2
[encoders]
image = "vit-mini"
[foundation]
kind = "tiny"
num_steps = 5
[injection]
num_experts = 2
rank = 2
num_epochs = 1
[evaluation]
num_resamples = 50
"""
SWEEP = """
name = "ablation"
base = "base.toml"
seeds = [0, 1]
paper = ["Table 3"]
[axes.method.FedKIM]
[axes.method.FedKIM_pub]
federate = false
[axes.method.FedPlug]
injection.num_experts = 0
"""
BROKEN = """
[axes.method.Broken]
split.ratios = [7, 0, 1, 1]
"""


def write(place: Path, text: str) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "base.toml").write_text(BASE, encoding="utf-8")
    path = place / "sweep.toml"
    path.write_text(text, encoding="utf-8")
    return path


def command(place: Path, cache: Path, text: str, *more: str) -> list[str]:
    sweep = str(write(place, text))
    places = ["--runs", str(place / "runs"), "--cache", str(cache)]
    return [sys.executable, "-m", "medfed", "run", sweep, "--workers", "2", *places, *more]


def start(place: Path, cache: Path, text: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(place, cache, text, *more), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    place = tmp_path_factory.mktemp("whole")
    return place, start(place, cache, SWEEP + BROKEN)


Whole = tuple[Path, subprocess.CompletedProcess[str]]


def test_a_failing_cell_fails_the_command_and_nothing_else(whole: Whole) -> None:
    place, done = whole
    assert done.returncode == 1
    assert "2 of 8 runs failed" in done.stderr
    for seed in (0, 1):
        assert f"Broken, seed {seed}: " in done.stderr
    assert "no public example left" in done.stderr
    assert len(list((place / "runs" / "tiny").glob("*/DONE"))) == 6


def test_without_the_failing_cell_the_finished_runs_are_compared(whole: Whole, cache: Path) -> None:
    place, _ = whole
    before = {path: path.stat().st_mtime_ns for path in (place / "runs" / "tiny").rglob("*")}
    done = start(place, cache, SWEEP)
    assert done.returncode == 0, done.stderr
    assert "finished before: 6 of 6" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in (place / "runs" / "tiny").rglob("*")} == before
    comparison = json.loads((place / "runs" / "ablation" / "comparison.json").read_text(encoding="utf-8"))
    assert comparison["seeds"] == {"FedKIM": [0, 1], "FedKIM_pub": [0, 1], "FedPlug": [0, 1]}
    models = {(row["label"], row["model"]) for row in comparison["rows"]}
    assert {("FedKIM", name) for name in ("fedkim", "federated", "local", "centralised", "heads")} <= models
    assert ("FedKIM_pub", "fedkim") in models
    assert ("FedKIM_pub", "federated") in models
    assert ("FedKIM_pub", "heads") not in models
    assert not any(row["significant"] for row in comparison["differences"])
    pairs = {(row["label"], row["baseline_label"], row["task"]) for row in comparison["differences"]}
    assert ("FedKIM", "FedPlug", "ped") in pairs
    text = (place / "runs" / "ablation" / "table.md").read_text(encoding="utf-8")
    assert "FedPlug, FedAvg, Wang et al. 2024 (FedKIM), Table 3" in text
    assert "Always no, computed from the labels" in text
    assert (place / "runs" / "ablation" / "report.html").is_file()


def test_cells_share_their_baselines(whole: Whole) -> None:
    folders = [path.name for path in (whole[0] / "runs" / "federations").iterdir() if path.is_dir()]
    kinds = sorted(name.split("-")[0] for name in folders)
    print("federated, centralised and two local models at two seeds, whatever the number of cells")
    assert kinds == ["centralised"] * 2 + ["federated"] * 2 + ["local"] * 4
    logs = {path.read_bytes() for path in (whole[0] / "runs" / "tiny").glob("*-seed0/federated-only/rounds.jsonl")}
    assert len(logs) == 1


def test_without_clients_the_server_injects_alone(whole: Whole) -> None:
    (folder,) = [
        path.parent
        for path in (whole[0] / "runs" / "tiny").glob("*-seed0/study.json")
        if not json.loads(path.read_text(encoding="utf-8"))["federate"]
    ]
    run = RunFolder(folder)
    assert [(line.round, line.clients) for line in run.lines(Round)] == [(1, ()), (2, ())]
    assert {line.round for line in run.lines(Step)} == {1, 2}
    assert list(run.predictions("cd")[0].responses) == [
        "fedkim",
        "federated",
        "centralised",
        "local/client-0",
        "local/client-1",
    ]


def test_runs_on_the_same_data_share_hashed_ids(whole: Whole) -> None:
    files = sorted((whole[0] / "runs" / "tiny").glob("*-seed0/predictions/ped.jsonl"))
    ids = [[json.loads(line)["patient"] for line in path.read_text(encoding="utf-8").splitlines()] for path in files]
    assert len(files) > 1
    assert all(own == ids[0] for own in ids)
    index = json.loads((files[0].parents[1] / "partition.json").read_text(encoding="utf-8"))
    assert not set(ids[0]) & {name for names in index["server"]["test"].values() for name in names}


def hears_interrupts() -> None:
    """Let a child hear Ctrl-C, also where the tests run in the background of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    "how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)], ids=["interrupted", "killed"]
)
def test_an_ended_sweep_leaves_no_process_and_goes_on_to_the_same_bits(
    how: signal.Signals, whole: Whole, cache: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command(tmp_path, cache, SWEEP),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hears_interrupts,  # noqa: PLW1509 (this process has no threads yet)
    )
    until(lambda: any((tmp_path / "runs").glob("federations/*/checkpoints/*/manifest.json")), process)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        process.kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    assert not list((tmp_path / "runs").glob("tiny/*/DONE"))
    done = start(tmp_path, cache, SWEEP, "--seeds", "0")
    assert done.returncode == 0, done.stderr
    for name in ("tiny", "federations"):
        ours, theirs = (first_seed(RunFolder(place / "runs" / name).checksums()) for place in (tmp_path, whole[0]))
        assert ours
        assert ours == {path: theirs[path] for path in ours}


def test_a_worker_that_is_killed_takes_no_other_run_with_it(cache: Path, tmp_path: Path) -> None:
    words = command(tmp_path, cache, SWEEP, "--seeds", "0")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: any((tmp_path / "runs").glob("federations/*/checkpoints/*/manifest.json")), process)
    workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "1 of 3 runs failed" in errors
    assert "the worker was killed by SIGKILL" in errors
    assert len(list((tmp_path / "runs").glob("tiny/*/DONE"))) == 2


def first_seed(checksums: dict[str, str]) -> dict[str, str]:
    """What belongs to seed 0: of seed 1 only what was begun before the interruption is there."""
    return {path: digest for path, digest in checksums.items() if path.split("/")[0].endswith("-seed0")}


def until(ready: object, process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Wait until ``ready()`` is true, while the process lives."""
    assert callable(ready)
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
