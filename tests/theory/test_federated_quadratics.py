"""Closed forms on quadratics in float64: where FedAvg and FedProx end, and why that is not the optimum.

Client i has F_i(w) = ½ a_i (w − b_i)² per coordinate, takes τ full-gradient steps with learning rate η, and weighs n_i.
"""

from __future__ import annotations

import pytest
import torch

from medfed.study.algorithms import AlgorithmSettings, FedAvg, FedProx
from medfed.study.federation import ClientSettings
from support.federated_toys import converge, quadratic_client

A = torch.tensor([[1.0, 4.0], [9.0, 1.5], [2.0, 2.0]], dtype=torch.float64)
B = torch.tensor([[1.0, -1.0], [-2.0, 3.0], [0.5, 4.0]], dtype=torch.float64)
N = torch.tensor([[10.0], [30.0], [20.0]], dtype=torch.float64)
LR, STEPS = 0.15, 5


def end(algorithm: AlgorithmSettings, num_steps: int = STEPS, num_rounds: int = 24, lr: float = LR) -> torch.Tensor:
    clients = [quadratic_client(f"h{i}", A[i].tolist(), B[i].tolist(), num_examples=int(N[i])) for i in range(len(A))]
    settings = ClientSettings(optimizer="sgd", lr=lr, batch_size=64, local_steps=num_steps)
    return converge(algorithm, clients, settings, num_rounds, dim=2).params["w"]


def check(found: torch.Tensor, expected: torch.Tensor, derivation: str) -> None:
    print(f"\n{derivation}\nexpected {expected.tolist()}\nfound    {found.tolist()}")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_fedavg_with_one_step_finds_the_optimum() -> None:
    optimum = (N * A * B).sum(0) / (N * A).sum(0)
    check(
        end(FedAvg(), num_steps=1, num_rounds=40, lr=0.2),
        optimum,
        "τ = 1 is gradient descent: w* = Σ n_i a_i b_i / Σ n_i a_i",
    )


def test_fedavg_with_unequal_curvature_ends_off_the_optimum() -> None:
    kept = (1 - LR * A) ** STEPS
    fixed = (N * (1 - kept) * B).sum(0) / (N * (1 - kept)).sum(0)
    check(
        end(FedAvg()),
        fixed,
        "a step: y − b_i ← (1 − η a_i)(y − b_i); after τ steps y_i − x = −(1 − ρ_i)(x − b_i), ρ_i = (1 − η a_i)^τ\n"
        "Σ n_i (y_i − x) = 0  ⇒  x* = Σ n_i (1 − ρ_i) b_i / Σ n_i (1 − ρ_i)",
    )
    optimum = (N * A * B).sum(0) / (N * A).sum(0)
    print(f"optimum  {optimum.tolist()}: a bias of {(fixed - optimum).tolist()}")
    assert bool(((fixed - optimum).abs() > 0.05).all())


@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_fedprox_fixed_point(mu: float) -> None:
    kept = (1 - LR * (A + mu)) ** STEPS
    share = N * (1 - kept) * A / (A + mu)
    check(
        end(FedProx(mu=mu)),
        (share * B).sum(0) / share.sum(0),
        "the pulled objective ½ a_i (y − b_i)² + ½ μ (y − x)² has its minimum at m_i = (a_i b_i + μ x)/(a_i + μ)\n"
        "y_i − x = −(1 − ρ_i)(x − m_i), ρ_i = (1 − η (a_i + μ))^τ, and x − m_i = a_i (x − b_i)/(a_i + μ)\n"
        "⇒ x* = Σ s_i b_i / Σ s_i with s_i = n_i (1 − ρ_i) a_i/(a_i + μ)",
    )


def test_a_stronger_pull_ends_nearer_the_optimum() -> None:
    """As μ grows, s_i → n_i a_i · const, so the bias of client drift vanishes."""
    optimum = (N * A * B).sum(0) / (N * A).sum(0)
    bias = [float((end(FedProx(mu=mu), num_rounds=8) - optimum).norm()) for mu in (0.0, 1.0, 3.0)]
    print(f"bias at μ = 0, 1, 3: {bias}")
    assert bias[0] > bias[1] > bias[2]
