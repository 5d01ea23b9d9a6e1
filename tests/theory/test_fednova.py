"""FedNova in float64: the effective steps a_i, and fixed points under unequal local steps.

Client i has F_i(w) = ½ a_i (w − b_i)², n_i examples and, at one epoch of batches of ten, τ_i = n_i/10 full-gradient
steps with learning rate η.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medfed.algorithms.fednova import STEPS, effective_steps
from medfed.core.types import Broadcast
from medfed.federated.client import initial_client_state
from medfed.federated.state import Weights
from medfed.study.algorithms import AlgorithmSettings, FedAvg, FedNova, FedProx
from medfed.study.federation import ClientSettings
from support.federated_toys import Point, converge, quadratic_client

A = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
B = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
N = torch.tensor([10.0, 50.0, 20.0], dtype=torch.float64)
TAU = [1, 5, 2]
OPTIMUM = float((N * A * B).sum() / (N * A).sum())


def end(algorithm: AlgorithmSettings, lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> float:
    """The fixed point of the rounds: from 0, a round is x ← αx + β, so β = x₁ and α = x₂/x₁ − 1, x* = β/(1 − α)."""
    clients = [quadratic_client(f"h{i}", [float(A[i])], [float(B[i])], int(N[i])) for i in range(len(A))]
    settings = ClientSettings(optimizer="sgd", lr=lr, momentum=momentum, weight_decay=weight_decay, batch_size=10)
    one, two = (converge(algorithm, clients, settings, rounds, dim=1).params["w"].item() for rounds in (1, 2))
    return one / (2 - two / one)


def kept(lr: float, momentum: float, mu: float) -> Tensor:
    """k_i with y_i − m_i = k_i (x − m_i) after τ_i steps, m_i the minimum of F_i(y) + (μ/2)(y − x)²."""
    shares = []
    for a, tau in zip((A + mu).tolist(), TAU, strict=True):
        place, velocity = 1.0, 0.0
        for _ in range(tau):
            velocity = momentum * velocity + a * place
            place -= lr * velocity
        shares.append(place)
    return torch.tensor(shares, dtype=torch.float64)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("tau", [1, 2, 7])
def test_effective_steps_are_the_papers(tau: int, decay: float, momentum: float) -> None:
    ages = range(tau)
    if decay == 0:
        vector = [sum(momentum**step for step in range(tau - k)) for k in ages]
        derivation = "momentum: a_k = 1 + ρ + … + ρ^(τ−1−k) = (1 − ρ^(τ−k))/(1 − ρ)"
    elif momentum == 0:
        vector = [(1 - decay) ** (tau - 1 - k) for k in ages]
        derivation = "proximal: a_k = (1 − ημ)^(τ−1−k)"
    else:
        # The recursion v ← ρv + g − ημ s, s ← s + v as a matrix on (v, s): a_k = s after τ−1−k more steps from (1, 1).
        turn = torch.tensor([[momentum, -decay], [momentum, 1 - decay]], dtype=torch.float64)
        impulse = torch.ones(2, dtype=torch.float64)
        vector = [float((torch.linalg.matrix_power(turn, tau - 1 - k) @ impulse)[1]) for k in ages]
        derivation = "both: a_k = second entry of Mᵗ(1, 1), M = [[ρ, −ημ], [ρ, 1 − ημ]], t = τ − 1 − k"
    found = effective_steps(tau, momentum, decay)
    print(f"{derivation}\na = {vector}\nsum {sum(vector)}, found {found}")
    assert found == pytest.approx(sum(vector), rel=1e-12)
    if momentum and not decay:
        assert found == pytest.approx((tau - momentum * (1 - momentum**tau) / (1 - momentum)) / (1 - momentum))


@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.8, 0.0), (0.0, 2.0), (0.8, 2.0)])
def test_the_change_under_a_constant_gradient_is_the_effective_steps(momentum: float, mu: float) -> None:
    """With F(w) = ½ε(w + g/ε)² and ε → 0 every gradient is g, so y − x = −η‖a‖₁ g: the client's loop agrees."""
    slope, tiny = 3.0, 1e-9
    client = quadratic_client("h", [tiny], [-slope / tiny])
    settings = ClientSettings(optimizer="sgd", lr=0.1, momentum=momentum, local_steps=6)
    algorithm, point = FedNova(mu=mu).build(), torch.zeros(1, dtype=torch.float64)
    state = initial_client_state(algorithm, Weights({"w": point}, {}))
    update, _ = client.train(Point(1), Broadcast(1, "", {"w": point}), algorithm, state, settings, 0)
    print(f"‖a‖₁ = {float(update.state[STEPS])}, y − x = {update.delta['w'].item()}")
    assert update.delta["w"].item() == pytest.approx(-0.1 * float(update.state[STEPS]) * slope, rel=1e-6)


@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.5, 0.0), (0.0, 1.0), (0.5, 1.0)])
def test_fixed_point(momentum: float, mu: float) -> None:
    lr = 0.05
    counts = torch.tensor([effective_steps(tau, momentum, lr * mu) for tau in TAU], dtype=torch.float64)
    share = N * (1 - kept(lr, momentum, mu)) * A / (A + mu) / counts
    expected = (share * B).sum() / share.sum()
    found = end(FedNova(mu=mu), lr, momentum)
    print(
        "y_i − x = −(1 − k_i)(x − m_i) and x − m_i = a_i (x − b_i)/(a_i + μ); Σ n_i (y_i − x)/‖a_i‖₁ = 0\n"
        f"⇒ x* = Σ s_i b_i / Σ s_i, s_i = n_i (1 − k_i) a_i/((a_i + μ)‖a_i‖₁): {float(expected)}, found {found}"
    )
    assert found == pytest.approx(float(expected), abs=1e-9)


def limit(algorithm: AlgorithmSettings, momentum: float) -> float:
    """The fixed point as η → 0, where only unequal steps can bias it: extrapolated from η, η/2 and η/4."""
    at = [end(algorithm, lr, momentum) for lr in (0.004, 0.002, 0.001)]
    first = [2 * at[1] - at[0], 2 * at[2] - at[1]]
    return (4 * first[1] - first[0]) / 3


@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.5, 0.0), (0.0, 1.0)])
def test_unequal_steps_bias_fedavg_and_not_fednova(momentum: float, mu: float) -> None:
    steps = torch.tensor([effective_steps(tau, momentum, 0.0) for tau in TAU], dtype=torch.float64)
    biased = float((N * steps * A * B).sum() / (N * steps * A).sum())
    plain = FedProx(mu=mu) if mu else FedAvg()
    found, drifted = limit(FedNova(mu=mu), momentum), limit(plain, momentum)
    print(
        f"η → 0: y_i − x → −η‖a_i‖₁ a_i (x − b_i). FedAvg: Σ n_i‖a_i‖₁ a_i b_i / Σ n_i‖a_i‖₁ a_i = {biased}, "
        f"found {drifted}\nFedNova: the weighted optimum Σ n_i a_i b_i / Σ n_i a_i = {OPTIMUM}, found {found}"
    )
    assert found == pytest.approx(OPTIMUM, abs=1e-4)
    assert drifted == pytest.approx(biased, abs=1e-4)
    assert abs(biased - OPTIMUM) > 0.1


def test_with_weight_decay_the_objective_has_the_decay_in_it() -> None:
    lr, decay = 0.05, 0.4
    found = end(FedNova(), lr, weight_decay=decay)
    shrunk, counts = 1 - (1 - lr * (A + decay)) ** torch.tensor(TAU), torch.tensor(TAU, dtype=torch.float64)
    share = N * shrunk / counts
    # ½a(w − b)² + ½λw² has its minimum at ab/(a + λ) and curvature a + λ.
    expected = float((share * A * B / (A + decay)).sum() / share.sum())
    assert found == pytest.approx(expected, abs=1e-9)
