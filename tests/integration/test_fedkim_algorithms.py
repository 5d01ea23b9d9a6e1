"""Every algorithm federates FedKIM's clients too: two rounds with injection, to scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.core.catalog import ALGORITHMS
from medfed.core.progress import Reporter
from medfed.records.folder import RunFolder
from medfed.records.schema import Round, ScoreFile
from medfed.runs.context import RunPaths
from medfed.runs.pipeline import run_study
from medfed.study.federation import ClientSettings
from medfed.study.study import study_of
from support.federated_toys import allowed

STUDY = {
    "name": "small",
    "train": ["ead", "lod"],
    "baselines": [],
    "twins": {"num_patients": 40},
    "partition": {"num_clients": 2},
    "rounds": {"num_rounds": 2},
    "encoders": {"image": "vit-mini", "ecg": {"name": "conv1d", "norm": "batch"}},
    "foundation": {"kind": "tiny", "num_steps": 5},
    "injection": {"num_experts": 2, "rank": 2, "num_epochs": 1},
    "evaluation": {"num_resamples": 20},
}
QUICK = ("scaffold", "creamfl", "fedper")
"""Those that differ most from FedAvg in what travels."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ALGORITHMS]
)
def test_an_algorithm_federates_fedkims_clients(name: str, cache: Path, tmp_path: Path) -> None:
    client = allowed(ALGORITHMS[name](), ClientSettings(lr=1e-3))
    tree = STUDY | {"algorithm": name, "client": client.model_dump()}
    folder = run_study(study_of(tree, "test"), RunPaths(tmp_path, cache), Reporter.silent())
    run = RunFolder(folder)
    rounds = run.lines(Round)
    assert [len(line.clients) for line in rounds] == [2, 2]
    assert not any(line.failures for line in rounds)
    values = [row for row in run.read(ScoreFile).rows if row.metric == "auroc"]
    assert {row.task for row in values if row.model == "fedkim"} == {"ead", "lod"}
    up = sum(client.bytes_up for client in rounds[0].clients)
    print(f"{name} sends {up} bytes a round")
    assert up > 0
