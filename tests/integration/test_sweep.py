"""A sweep end to end: shared baselines, a failing cell, interruption without orphans, and FedKIM without clients."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
import pytest

from medfed.evaluation.controls import is_control
from medfed.records.folder import RunFolder
from medfed.records.schema import Round, Step
from support.checksums import checksums
from support.clocks import until
from support.processes import Process, Ran, run

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
    return ["run", sweep, "--workers", "2", *places, *more]


def start(place: Path, cache: Path, text: str, *more: str) -> Ran:
    return run(command(place, cache, text, *more), place / f"{len(list(place.glob('*.log')))}.log")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Path, Ran]:
    place = tmp_path_factory.mktemp("whole")
    return place, start(place, cache, SWEEP + BROKEN)


Whole = tuple[Path, Ran]


def test_a_failing_cell_fails_the_command_and_nothing_else(whole: Whole) -> None:
    place, done = whole
    assert done.status == 1
    assert "2 of 8 runs failed" in done.text
    for seed in (0, 1):
        assert f"Broken, seed {seed}: " in done.text
    assert "no public example left" in done.text
    assert len(list((place / "runs" / "tiny").glob("*/DONE"))) == 6


def test_without_the_failing_cell_the_finished_runs_are_compared(whole: Whole, cache: Path) -> None:
    place, _ = whole
    before = {path: path.stat().st_mtime_ns for path in (place / "runs" / "tiny").rglob("*")}
    done = start(place, cache, SWEEP)
    assert done.status == 0, done.text
    assert "finished before: 6 of 6" in done.text
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
    assert [name for name in run.predictions("cd")[0].responses if not is_control(name)] == [
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


@pytest.mark.parametrize(
    "how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)], ids=["interrupted", "killed"]
)
def test_an_ended_sweep_leaves_no_process_and_goes_on_to_the_same_bits(
    how: signal.Signals, whole: Whole, cache: Path, tmp_path: Path
) -> None:
    process = stopped_at_the_first_checkpoint(tmp_path, command(tmp_path, cache, SWEEP))
    (process.send_group if how == signal.SIGINT else process.send)(how)
    assert process.wait() == (130 if how == signal.SIGINT else -signal.SIGKILL), process.told()
    assert "Traceback" not in process.text
    assert process.left_behind() == []
    assert not list((tmp_path / "runs").glob("tiny/*/DONE"))
    done = start(tmp_path, cache, SWEEP, "--seeds", "0")
    assert done.status == 0, done.text
    for name in ("tiny", "federations"):
        ours, theirs = (first_seed(checksums(place / "runs" / name)) for place in (tmp_path, whole[0]))
        assert ours
        assert ours == {path: theirs[path] for path in ours}


def test_a_worker_that_is_killed_takes_no_other_run_with_it(cache: Path, tmp_path: Path) -> None:
    process = stopped_at_the_first_checkpoint(tmp_path, command(tmp_path, cache, SWEEP, "--seeds", "0"))
    servers = psutil.Process(process.pid).children()
    workers = [worker for server in servers for worker in server.children()]
    assert len(workers) == 2
    workers[0].kill()
    assert process.wait() == 1
    assert "1 of 3 runs failed" in process.text
    assert "the worker was killed by SIGKILL" in process.text
    assert len(list((tmp_path / "runs").glob("tiny/*/DONE"))) == 2


def first_seed(checksums: dict[str, str]) -> dict[str, str]:
    """What belongs to seed 0: of seed 1 only what was begun before the interruption is there."""
    return {path: digest for path, digest in checksums.items() if path.split("/")[0].endswith("-seed0")}


def stopped_at_the_first_checkpoint(place: Path, arguments: list[str]) -> Process:
    """Start the command and return when a federation of it has written a checkpoint, and while it is at work."""
    process = Process(arguments, place / "ended.log")
    checkpoints = "federations/*/checkpoints/*/manifest.json"
    until(lambda: any((place / "runs").glob(checkpoints)) or process.status is not None, told=process.told)
    assert process.status is None, process.told()
    return process
