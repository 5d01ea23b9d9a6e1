"""Where a peer is right ours agrees with it: Flower's FedAvg, FedProx and adaptive strategies on the same updates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from medfed.core.catalog import ALGORITHMS
from medfed.core.torch_rng import torch_rng
from medfed.core.types import Update
from medfed.federated.algorithm import Federation
from medfed.federated.state import FederatedState
from medfed.study.algorithms import AlgorithmSettings

strategies = pytest.importorskip("flwr.serverapp.strategy", reason="flwr is not installed: nothing to compare with")
SHAPES = {"encoders.a.weight": (3, 4), "heads.x.bias": (2,)}
EXAMPLES = {"h0": 17, "h1": 5, "h2": 40}
SETTINGS = {"eta": 0.05, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-2}
ROUNDS = 4
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Reply:
    """As much of a message as a strategy reads; a real one is made inside a running server only."""

    content: Any

    def has_error(self) -> bool:
        return False


def updates(round: int) -> list[Update]:
    """Made-up changes: the aggregation does not ask where they come from."""
    rng = torch_rng("peer", round)
    return [
        Update(client, round, "", {name: torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}, count, 1)
        for client, count in EXAMPLES.items()
    ]


def replies(state: FederatedState, given: list[Update]) -> Iterator[Reply]:
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

    for update in given:
        arrays = {name: Array((state.params[name] + change).numpy()) for name, change in update.delta.items()}
        metrics = MetricRecord({"num-examples": update.num_examples})
        yield Reply(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}))


def side_by_side(strategy: Any, algorithms: list[AlgorithmSettings]) -> None:
    """Run the rounds with both; every round starts from the same model, moments are each side's own."""
    params = {name: torch.randn(shape, generator=torch_rng("start", name)) for name, shape in SHAPES.items()}
    state = FederatedState(0, params, {}, algorithms[0].build().init_server(params))
    for number, algorithm in enumerate(algorithms, start=1):
        given = updates(number)
        strategy.current_arrays = {name: value.numpy() for name, value in state.params.items()}
        theirs, _ = strategy.aggregate_train(number, list(replies(state, given)))
        ours = algorithm.build().aggregate(state, iter(given), Federation(EXAMPLES, 0))
        for name, value in ours.params.items():
            expected = torch.from_numpy(theirs[name].numpy()).float()
            assert not torch.allclose(value, state.params[name], atol=1e-3), "nothing moved"
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        state = FederatedState(number, ours.params, ours.buffers, ours.server_state)


def floors(value: float) -> Arrays:
    """The papers' first v; Flower starts at 0."""
    return {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}


@pytest.mark.parametrize(("theirs", "ours"), [("FedAvg", "fedavg"), ("FedProx", "fedprox")])
def test_the_mean_of_fedavg_and_fedprox(theirs: str, ours: str) -> None:
    """FedProx differs at the clients only: its strategy averages what the pulled clients send."""
    side_by_side(getattr(strategies, theirs)(), [ALGORITHMS[ours]()] * ROUNDS)


@pytest.mark.parametrize(("theirs", "ours"), [("FedAdagrad", "fedadagrad"), ("FedYogi", "fedyogi")])
def test_adagrad_and_yogi(theirs: str, ours: str) -> None:
    fields = ALGORITHMS[ours].model_fields.keys()
    given = {name: value for name, value in SETTINGS.items() if name in fields and (name, ours) != BETAS}
    strategy = getattr(strategies, theirs)(**given)
    strategy.v_t = floors(SETTINGS["tau"] ** 2)
    side_by_side(strategy, [ALGORITHMS[ours].model_validate(given)] * ROUNDS)


BETAS = ("beta_1", "fedadagrad")
"""Flower's FedAdagrad has no momentum, like ours by default."""


def test_adam() -> None:
    """Flower multiplies η by √(1 − β2^(t+1))/(1 − β1^(t+1)); Alg. 2 has no such factor, so ours is given it as η."""
    strategy = strategies.FedAdam(**SETTINGS)
    strategy.v_t = floors(SETTINGS["tau"] ** 2)
    kind, beta_1, beta_2 = ALGORITHMS["fedadam"], SETTINGS["beta_1"], SETTINGS["beta_2"]
    factors = [np.sqrt(1 - beta_2 ** (t + 1)) / (1 - beta_1 ** (t + 1)) for t in range(1, ROUNDS + 1)]
    side_by_side(strategy, [kind.model_validate(SETTINGS | {"eta": SETTINGS["eta"] * factor}) for factor in factors])
