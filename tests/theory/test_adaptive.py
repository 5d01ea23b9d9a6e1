"""The adaptive family: first two steps by hand, and tensors that nobody trained."""

from __future__ import annotations

from math import sqrt

import pytest
import torch

from medfed.core.catalog import ALGORITHMS
from medfed.federated.rounds import initial_state
from medfed.study.algorithms import Adaptive
from medfed.study.federation import ClientSettings
from support.federated_toys import SMALL, converge, quadratic_client, run, small_model

ETA, TAU, BETA_1, BETA_2, EPSILON = 0.3, 0.2, 0.9, 0.75, 0.05


def by_hand(name: str, delta: float, moment: float, second: float, largest: float) -> tuple[float, float, float, float]:
    """One step of the server, from the papers: (step, m, v, v̂)."""
    beta = 0.0 if name == "fedadagrad" else BETA_1
    moment = beta * moment + (1 - beta) * delta
    square = delta**2
    if name == "fedadagrad":
        second += square
    elif name == "fedyogi":
        second -= (1 - BETA_2) * square * ((second > square) - (second < square))
    else:
        second = BETA_2 * second + (1 - BETA_2) * square
    largest = max(largest, second, EPSILON)
    below = sqrt(largest) if name == "fedams" else sqrt(second) + TAU
    return ETA * moment / below, moment, second, largest


@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi", "fedams"])
def test_the_first_two_steps_by_hand(name: str) -> None:
    fields = {"eta": ETA} | ({"epsilon": EPSILON} if name == "fedams" else {"tau": TAU})
    fields |= {"beta_1": 0.0} if name == "fedadagrad" else {"beta_1": BETA_1, "beta_2": BETA_2}
    algorithm = ALGORITHMS[name].model_validate(fields)
    # F = ½(w − 1)², one step of η_l = ½ halves the distance to 1: Δ = (1 − x)/2.
    client, settings = [quadratic_client("h", [1.0], [1.0])], ClientSettings(optimizer="sgd", lr=0.5, local_steps=1)
    x, moment, second, largest = 0.0, 0.0, 0.0 if name == "fedams" else TAU**2, 0.0
    for num_rounds in (1, 2):
        delta = (1 - x) / 2
        step, moment, second, largest = by_hand(name, delta, moment, second, largest)
        x += step
        state = converge(algorithm, client, settings, num_rounds, dim=1)
        print(f"{name} round {num_rounds}: Δ = {delta}, m = {moment}, v = {second}, x = {x}")
        assert state.params["w"].item() == pytest.approx(x, abs=1e-12)
        assert state.server_state["m/w"].item() == pytest.approx(moment, abs=1e-12)
        assert state.server_state["v/w"].item() == pytest.approx(second, abs=1e-12)


@pytest.mark.parametrize("name", [name for name, kind in ALGORITHMS.items() if issubclass(kind, Adaptive)])
def test_moments_of_a_tensor_nobody_trained_stay_as_they_are(name: str) -> None:
    """Momentum of earlier rounds does not move a tensor either: round 2 has no hospital with modality b."""
    algorithm = ALGORITHMS[name]()
    rounds = 0

    def two_rounds(answers: list) -> list:
        nonlocal rounds
        rounds += 1
        return answers if rounds == 1 else [answer for answer in answers if answer[0] in ("h1", "h3")]

    first, second = run(algorithm, 2, SMALL, meddle=two_rounds)
    start = initial_state(small_model(), algorithm)
    names = [n for n in first.state.params if n.startswith("encoders.b.")]
    for n in names:
        assert not torch.equal(first.state.params[n], start.params[n])
        assert torch.equal(second.state.params[n], first.state.params[n])
    for n, value in second.state.server_state.items():
        untouched = torch.equal(value, first.state.server_state[n])
        assert untouched == any(n.endswith(f"/{tensor}") for tensor in names) or "v_hat" in n, n
