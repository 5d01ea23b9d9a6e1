"""`medfed run STUDY --workers 2` leaves the files of `--workers 1`, FedKIM's included, and the benchmark's too."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from medfed.core.progress import Reporter
from medfed.runs.context import RunPaths
from medfed.runs.pipeline import run_study
from medfed.study.study import load_study
from support.checksums import checksums

FEDKIM = """
name = "small"
train = ["cd", "lod"]
unseen = ["ped"]
baselines = ["federated"]
algorithm = "scaffold"
[client]
optimizer = "sgd"
lr = 1e-2
[twins]
num_patients = 30
[partition]
num_clients = 3
[rounds]
num_rounds = 2
[encoders]
image = "vit-mini"
[foundation]
kind = "tiny"
num_steps = 3
[injection]
num_experts = 2
rank = 2
num_epochs = 1
[evaluation]
num_resamples = 20
"""
BENCHMARK = """
name = "small"
job = "benchmark"
train = ["mimic-cxr"]
baselines = ["local", "centralised"]
algorithm = "creamfl"
[twins]
num_patients = 40
[split]
ratios = [5, 2, 0, 3]
official = false
[partition]
num_clients = 3
[rounds]
num_rounds = 2
participation = 0.7
[encoders]
image = "resnet-mini"
report = "text-mini"
[client]
lr = 1e-3
[evaluation]
num_resamples = 20
watch_every = 0
"""


@pytest.mark.parametrize("text", [FEDKIM, BENCHMARK], ids=["fedkim", "benchmark"])
def test_a_run_with_workers_has_the_files_of_a_run_without(text: str, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(text, encoding="utf-8")
    study = load_study(tmp_path / "small.toml")
    runs = [tmp_path / f"runs-{number}" for number in (1, 2)]
    for workers, folder in enumerate(runs, start=1):
        run_study(study, RunPaths(folder, tmp_path / "cache", workers=workers), Reporter(Console(quiet=True)))
    one, two = (checksums(folder) for folder in runs)
    assert any(name.endswith("state.safetensors") for name in one)
    assert any("/clients/" in name for name in one)
    assert two == one
