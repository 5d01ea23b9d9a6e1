"""RFNet in a federation: it learns on twins, bears a hospital without a sequence, and takes the real extract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from medfed.core.catalog import TASKS
from medfed.core.torch_rng import torch_seeded
from medfed.data.decode import decode
from medfed.datasets.base import Record
from medfed.datasets.decoded import Decoded
from medfed.federated.algorithm import Federation
from medfed.federated.client import Client
from medfed.federated.exchange import InProcessExchange, Trainer
from medfed.federated.rounds import RoundResult, initial_state, run_rounds
from medfed.models.rfnet import RFNet
from medfed.study.algorithms import FedAvg
from medfed.study.federation import ClientSettings, RoundSettings
from medfed.tasks.base import TaskSet
from support.native_files import DATASET, all_examples, decoded_twin, grids
from support.small_federations import scores

BRATS = TASKS["brats"]

FAST = ClientSettings(lr=1e-2, batch_size=2)


def model() -> RFNet:
    with torch_seeded("brats"):
        return RFNet(BRATS, "small", drop_sequences=True)


def federate(data: Decoded, rows: Sequence[np.ndarray], num_rounds: int) -> list[RoundResult]:
    clients = [Client(f"h{number}", {"brats": TaskSet(BRATS, data, mine)}) for number, mine in enumerate(rows)]
    exchange = InProcessExchange(clients, Trainer(model(), FedAvg(), FAST, 0))
    state = initial_state(model(), FedAvg())
    settings = RoundSettings(num_rounds=num_rounds)
    return list(run_rounds(state, exchange, FedAvg(), Federation(exchange.registered, 0), settings))


def mean_loss(result: RoundResult) -> float:
    return float(np.mean([record.metrics["loss.brats"] for record in result.clients]))


def test_two_rounds_lower_the_loss_and_a_hospital_without_a_sequence_is_borne(tmp_path: Path) -> None:
    data = decoded_twin(tmp_path, 8)
    halves = np.array_split(np.arange(len(data.index)), 2)
    data.present["t1c"][halves[1]] = False
    data.samples["t1c"][halves[1]] = 0
    first, second = federate(data, halves, 2)
    assert [len(result.failures) for result in (first, second)] == [0, 0]
    assert mean_loss(second) < mean_loss(first)


class SmallCut(type(DATASET)):
    """The real cases, cut to the middle 48³ of the brain, so that a test takes seconds."""

    def load(self, root: Path, record: Record) -> dict[str, np.ndarray]:
        def middle(values: np.ndarray) -> np.ndarray:
            return values[tuple(slice(side // 2 - 24, side // 2 + 24) for side in values.shape)]

        return {name: middle(values) for name, values in super().load(root, record).items()}


def test_the_real_extract_loads_trains_and_scores_through_the_same_code(real_data: Path) -> None:
    if not (real_data / "brats").is_dir():
        pytest.skip(f"no BraTS extract at {real_data / 'brats'}")
    dataset = SmallCut()
    data = decode(dataset, dataset.locate(real_data), grids(48))
    (result,) = federate(data, [np.array([row]) for row in range(len(data.index))], 1)
    assert not result.failures
    assert np.isfinite(mean_loss(result))
    trained = model().eval()
    trained.load_state_dict(dict(result.state.params), strict=True)
    values = scores(BRATS, trained, all_examples(data))
    assert all(np.isfinite(value) for value in values.values())
    assert 0 <= values["dice"] <= 1
