"""A small study end to end: complete, frozen, not computed twice, and bit-identical after SIGKILL at any point."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.checksums import checksums
from support.planted_faults import Fault
from support.processes import run

STUDY = """
name = "small"
train = ["lod", "ead", "mp"]
unseen = ["ped", "ebd", "sp", "mr", "snc"]
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
ecg = "conv1d"
vitals = "transformer"
labs = "transformer"
input = "transformer"
output = "transformer"
[foundation]
kind = "tiny"
num_steps = 5
[injection]
num_experts = 3
rank = 2
num_epochs = 1
[evaluation]
num_resamples = 50
"""


def command(place: Path, cache: Path) -> list[str]:
    study = place / "small.toml"
    study.write_text(STUDY, encoding="utf-8")
    return ["run", str(study), "--runs", str(place / "runs"), "--cache", str(cache)]


def folder(place: Path) -> Path:
    (found,) = (place / "runs" / "small").iterdir()
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    place = tmp_path_factory.mktemp("whole")
    words = [sys.executable, "-m", "medfed", *command(place, cache)]  # a fresh interpreter; the others are forked
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def test_a_run_leaves_what_it_promises(whole: Path) -> None:
    made = folder(whole)
    expected = ["DONE", "study.json", "provenance.json", "partition.json", "normalisation.json", "rounds.jsonl"]
    expected += ["timings.jsonl", "scores.json", "report.html", "injection/routing.jsonl", "injection/steps.jsonl"]
    expected += ["controls.json"]
    assert [name for name in expected if not (made / name).is_file()] == []
    rows = json.loads((made / "scores.json").read_text(encoding="utf-8"))["rows"]
    models = {(row["task"], row["model"]) for row in rows}
    for task in ("lod", "ead", "mp", "ped", "ebd", "sp"):
        assert {(task, "fedkim"), (task, "always-yes"), (task, "always-no")} <= models
    assert {task for task, model in models if model == "federated"} == {"lod", "ead", "mp"}
    assert {task for task, model in models if model == "reuse/nearest"} == {"ped", "ebd", "sp"}
    assert {task for task, model in models if model == "count"} == {"ead", "mp", "ebd", "sp"}
    patients = {"lod", "ead", "mp", "ped", "ebd", "sp", "mr", "snc"}
    assert {task for task, model in models if model == "blind/none"} == patients


def test_the_controls_say_what_they_chose_and_what_the_answers_follow(whole: Path) -> None:
    written = json.loads((folder(whole) / "controls.json").read_text(encoding="utf-8"))
    assert {reuse["task"]: reuse["nearest"] for reuse in written["reuse"]} == {"ped": "lod", "ebd": "ead", "sp": "mp"}
    checks = {check["task"]: check for check in written["answers"]}
    assert checks.keys() == {"lod", "ead", "mp", "ped", "ebd", "sp"}
    assert list(checks["mp"]["rank_correlation"]) == ["heads"]
    assert list(checks["sp"]["rank_correlation"]) == ["reuse/mp"]
    assert all(0 <= check["negation"] <= 1 and 0 <= check["paraphrases"] <= 1 for check in checks.values())
    page = (folder(whole) / "report.html").read_text(encoding="utf-8")
    assert "Below a model&#39;s value stands the injected LLM" in page


def test_one_lora_answers_next_to_the_experts(whole: Path, cache: Path, tmp_path: Path) -> None:
    changes = ["--set", 'baselines=["lora"]', "--set", "unseen=[]", "--set", "evaluation.controls=[]"]
    made = run([*command(tmp_path, cache), *changes], tmp_path / "log")
    assert made.status == 0, made.text
    lines = (folder(tmp_path) / "predictions" / "mp.jsonl").read_text(encoding="utf-8").splitlines()
    given = [json.loads(line)["responses"] for line in lines]
    assert all(row.keys() == {"fedkim", "lora", "heads"} for row in given)
    assert any(row["fedkim"] != row["lora"] for row in given)
    gaps = json.loads((folder(tmp_path) / "scores.json").read_text(encoding="utf-8"))["differences"]
    assert ("fedkim", "lora", "auroc") in {(gap["model"], gap["baseline"], gap["metric"]) for gap in gaps}
    assert [place.name[:5] for place in (tmp_path / "runs" / "federations").glob("[!.]*")] == ["lora-"]


def test_the_foundation_is_bit_identical_before_and_after(whole: Path) -> None:
    facts = json.loads((folder(whole) / "provenance.json").read_text(encoding="utf-8"))["foundation"]
    assert len(facts["fingerprint_before"]) == 64
    assert facts["fingerprint_before"] == facts["fingerprint_after"]


def test_no_patient_id_is_in_predictions_or_logs(whole: Path) -> None:
    made = folder(whole)
    partition = json.loads((made / "partition.json").read_text(encoding="utf-8"))
    ids = [name for parts in partition["server"].values() for names in parts.values() for name in names]
    texts = [path.read_text(encoding="utf-8") for path in (made / "predictions").glob("*.jsonl")]
    texts += [path.read_text(encoding="utf-8") for path in made.glob("*.jsonl")]
    long_ids = [name for name in ids if len(name) > 6]
    assert long_ids
    assert not [name for name in long_ids if any(f'"{name}"' in text for text in texts)]


def test_a_finished_run_is_not_computed_twice(whole: Path, cache: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder(whole).rglob("*")}
    again = run(command(whole, cache), tmp_path / "log")
    assert again.status == 0
    assert "finished before" in again.text
    assert {path: path.stat().st_mtime_ns for path in folder(whole).rglob("*")} == before


POINTS = [
    ("medfed.llm.tiny.pretrain:pretrain", 1),
    ("medfed.federated.client:Client.train", 3),
    ("medfed.runs.checkpoints:Checkpoints.save", 3),
    ("medfed.records.folder:RunFolder.append", 12),
    ("medfed.injection.inject:Injector._step", 3),
    ("medfed.injection.retention:Retention.look", 2),
    ("medfed.runs.pipeline:predict", 3),
    ("medfed.runs.pipeline:write_report", 1),
]


@pytest.mark.parametrize(("target", "count"), POINTS, ids=[point[0].split(":")[1] for point in POINTS])
def test_sigkill_and_resume_give_the_same_bits(
    target: str, count: int, whole: Path, cache: Path, tmp_path: Path
) -> None:
    own_cache = tmp_path / "cache" if "pretrain" in target else cache
    if own_cache != cache:
        own_cache.mkdir()
        (own_cache / "twins").symlink_to(cache / "twins")
    killed = run(command(tmp_path, own_cache), tmp_path / "killed.log", Fault(target, count))
    assert killed.status == -signal.SIGKILL, killed.text
    resumed = run(command(tmp_path, own_cache), tmp_path / "resumed.log")
    assert resumed.status == 0, resumed.text
    assert checksums(folder(tmp_path)) == checksums(folder(whole))
    assert checksums(tmp_path / "runs" / "federations") == checksums(whole / "runs" / "federations")
