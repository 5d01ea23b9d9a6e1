"""Every algorithm of the grid on every task: none is a copy of another, and each is FedAvg at its null setting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from medfed.core.progress import Reporter
from medfed.data.cohort import Cohort, cohort_of
from medfed.data.decode import Reading, decode_all
from medfed.data.sources import find_sources
from medfed.evaluation.scorers import SCORERS
from medfed.federated.state import fingerprint, weights_of
from medfed.records.folder import RunFolder
from medfed.runs.federation import FederationRun, Trainee, build_model
from medfed.study.study import Study
from medfed.study.sweep import Cell, load_plan
from medfed.tasks.base import trainable

ROOT = Path(__file__).parents[2]
SMALL = (
    "client.local_steps=2",
    "rounds.num_rounds=2",
    "partition.num_clients=2",
    "split.ratios=[6,2,0,2]",
    "client.max_grad_norm=1.0",
    "baselines=[]",
)
PLAN = load_plan(ROOT / "studies" / "medmmfl.toml", SMALL)
TASKS = list(dict.fromkeys(cell.values["task"] for cell in PLAN.cells))
NULL = {"FedProx": {"mu": 0.0}, "MOON": {"mu": 0.0}, "SCAFFOLD": {"control": 0.0, "weighting": "examples"}}
"""Settings with which an algorithm is FedAvg, bit for bit."""


@dataclass(frozen=True)
class Bench:
    study: Study
    cohort: Cohort
    folder: Path

    def end(self, study: Study) -> str:
        """Return the fingerprint of what every client would predict with after two rounds of ``study``."""
        count = len(list(self.folder.iterdir()))
        run = RunFolder(self.folder / str(count))
        federation = FederationRun(run, study, self.cohort, Trainee("federated", build_model(study)))
        federation.run(Reporter.silent(), "train")
        deployed = {
            f"{client}/{name}": value
            for client in self.cohort.clients
            for name, value in _deployed(federation, client).items()
        }
        weights = weights_of(federation.model)
        return fingerprint({**weights.params, **deployed}, weights.buffers)


def _deployed(federation: FederationRun, client: str) -> dict[str, object]:
    weights = federation.deployed(client)
    return {**weights.params, **weights.buffers}


def cells(task: str) -> dict[str, Cell]:
    return {
        cell.values["algorithm"]: cell
        for cell in PLAN.cells
        if cell.values["task"] == task and cell.values["partition"] == "Dirichlet 0.8"
    }


@pytest.fixture(scope="module", params=TASKS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    study = cells(request.param)["FedAvg"].at(0)
    twins = study.twins
    assert twins is not None
    study = study.model_copy(update={"twins": twins.model_copy(update={"num_patients": 24})})
    cache = tmp_path_factory.mktemp("cache")
    reading = Reading(Reporter.silent())
    sources = find_sources(study, None, cache, reading.reporter)
    cohort = cohort_of(study, sources, decode_all(study, sources.roots, reading), reading)
    return Bench(study, cohort, tmp_path_factory.mktemp("runs"))


def test_no_algorithm_is_a_copy_of_another_and_each_has_its_null(bench: Bench) -> None:
    task = next(cell.values["task"] for cell in PLAN.cells if cell.study.train == bench.study.train)
    chosen = {name: cell.study.algorithm for name, cell in cells(task).items()}
    ends = {name: bench.end(bench.study.model_copy(update={"algorithm": kind})) for name, kind in chosen.items()}
    assert len(chosen) == 6
    for name, end in ends.items():
        twins = [other for other, theirs in ends.items() if theirs == end and other != name]
        if name == "FedNova" and twins == ["FedAvg"]:
            continue  # equal local steps: what it corrects is not there; unequal ones are below
        assert twins in ([], ["FedNova"]), f"{name} ends where {twins} ends"
    for name, fields in NULL.items():
        kind = type(chosen[name]).model_validate(chosen[name].model_dump() | fields)
        assert bench.end(bench.study.model_copy(update={"algorithm": kind})) == ends["FedAvg"], name


def test_fednova_differs_where_clients_take_unequal_steps(bench: Bench) -> None:
    client = bench.study.client.model_copy(update={"local_steps": None, "local_epochs": 1, "batch_size": 2})
    study = bench.study.model_copy(update={"client": client})
    task = next(cell.values["task"] for cell in PLAN.cells if cell.study.train == bench.study.train)
    nova = study.model_copy(update={"algorithm": cells(task)["FedNova"].study.algorithm})
    assert bench.end(nova) != bench.end(study)


CONSTANTS = {"auroc": 0.5, "macro_auroc": 0.5, "balanced_accuracy": 0.5}
"""What a constant answer has of a primary metric, whatever the examples."""


def test_every_task_has_constants_and_they_know_nothing(bench: Bench) -> None:
    examples = bench.cohort.test[bench.study.train[0]]
    task = trainable(examples.task)
    kind, truths = SCORERS[task.metric_kind], task.truths(examples)
    found = task.constants(examples)
    assert found
    for name, responses in found.items():
        assert len(responses) == len(examples)
        value = kind.points(truths, responses)[kind.primary]
        print(f"{task.name}: {name} has {kind.primary} {value}")
        if value is not None:
            assert value == pytest.approx(CONSTANTS[kind.primary]) if kind.primary in CONSTANTS else value < 0.7
