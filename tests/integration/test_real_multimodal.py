"""Two-modality federations, on twins and on small real extracts: load, train, answer and score by the same code."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from medfed.core.catalog import DATASETS, ENCODERS, MODALITIES, TASKS
from medfed.core.torch_rng import torch_seeded
from medfed.data.cohort import ELSEWHERE, Cohort, build_cohort
from medfed.data.decode import decode
from medfed.data.layout import Division
from medfed.datasets.base import write_twin
from medfed.evaluation.scorers import SCORERS
from medfed.models.multimodal import MultimodalModel
from medfed.study.data import PartitionSettings, SplitSettings, TwinSpec
from medfed.study.federation import ClientSettings
from medfed.tasks.base import trainable
from support.small_federations import scores, train

ENCODER_OF = {"image": "vit-mini", "report": "text-mini", "covid-labs": "transformer", "labs": "transformer"}
ENCODER_OF |= {"person": "transformer"}


def divide(name: str, root: Path, partition: PartitionSettings) -> Cohort:
    dataset = DATASETS[TASKS[name].dataset]
    data = {dataset.name: decode(dataset, dataset.locate(root), MODALITIES)}
    return build_cohort(data, Division([TASKS[name]], [], MODALITIES, SplitSettings(), partition, 0))


def model_of(name: str) -> MultimodalModel:
    encoders = {modality: ENCODERS[ENCODER_OF[modality]]() for modality in TASKS[name].modalities}  # type: ignore[call-arg]
    with torch_seeded("real"):
        return MultimodalModel(encoders, MODALITIES, (TASKS[name],))


def federate(name: str, cohort: Cohort, num_rounds: int, epochs: int = 1) -> tuple[MultimodalModel, list[float]]:
    """Return the global model after ``num_rounds`` of FedAvg, and the mean loss over clients of every round."""
    settings = ClientSettings(local_epochs=epochs, lr=0.001, batch_size=16)
    return train(partial(model_of, name), name, cohort, settings, num_rounds)


@pytest.mark.parametrize("name", ["mimic-cxr", "covid-icu", "mortality-mimic-iv", "mortality-eicu"])
def test_a_federation_learns_on_the_twin(name: str, tmp_path: Path) -> None:
    write_twin(DATASETS[TASKS[name].dataset], tmp_path, TwinSpec(num_patients=120, image_size=64))
    cohort = divide(name, tmp_path, PartitionSettings(num_clients=3))
    model, losses = federate(name, cohort, num_rounds=3, epochs=2)
    assert losses[-1] < losses[0]
    found = scores(trainable(TASKS[name]), model, cohort.test[name])
    primary = found[SCORERS[trainable(TASKS[name]).metric_kind].primary]
    print(name, {metric: round(value, 3) for metric, value in found.items()})
    assert 0 <= primary <= 1


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("covid-icu", "iid"), ("mortality-mimic-iv", "iid"), ("mortality-eicu", "iid"), ("mortality-eicu", "natural")],
)
def test_a_federation_trains_on_a_real_extract(name: str, scheme: str, real_data: Path) -> None:
    partition = PartitionSettings.model_validate({"num_clients": 3, "scheme": scheme})
    cohort = divide(name, real_data, partition)
    model, losses = federate(name, cohort, num_rounds=2)
    assert losses[-1] < losses[0]
    examples = cohort.test[name]
    found = scores(trainable(TASKS[name]), model, examples)
    print(name, scheme, len(cohort.clients), "clients,", len(examples), "test examples", found)
    assert 0 <= found["brier"] <= 2
    if scheme == "natural":
        assert len(cohort.clients) > 30
        assert min(len(tasks[name]) for tasks in cohort.clients.values()) == 1
        tested = [sets[name] for sets in cohort.client_tests.values() if name in sets]
        assert sum(map(len, tested)) == len(examples), "patients of hospitals that do not train are tested too"
        assert len(cohort.client_tests[ELSEWHERE][name]) > 1


@pytest.mark.slow
def test_the_image_text_twin_is_neither_hopeless_nor_given_away(tmp_path: Path) -> None:
    """One party with all the data learns most labels, not all: reports leave findings out."""
    write_twin(DATASETS["mimic-cxr"], tmp_path, TwinSpec(num_patients=400))
    cohort = divide("mimic-cxr", tmp_path, PartitionSettings(num_clients=1))
    model, _ = federate("mimic-cxr", cohort, num_rounds=4, epochs=4)
    found = scores("mimic-cxr", model, cohort.test["mimic-cxr"])
    print({metric: round(value, 3) for metric, value in found.items()})
    assert 0.72 < found["macro_auroc"] < 0.95
