"""Closed forms on quadratics in float64 for the algorithms whose product is the clients' models: Ditto and pFedMe.

Client i has F_i(w) = ½ a_i (w − b_i)² per coordinate and takes τ full-gradient steps with learning rate η.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medfed.federated.client import Client
from medfed.study.algorithms import AlgorithmSettings, Ditto, FedAvg, PFedMe
from medfed.study.federation import ClientSettings
from support.federated_toys import converge, converge_and_deploy, quadratic_client

A = torch.tensor([[1.0, 4.0], [9.0, 1.5], [2.0, 2.0]], dtype=torch.float64)
B = torch.tensor([[1.0, -1.0], [-2.0, 3.0], [0.5, 4.0]], dtype=torch.float64)
N = [10, 30, 20]
LR, STEPS = 0.15, 5
SETTINGS = ClientSettings(optimizer="sgd", lr=LR, batch_size=64, local_steps=STEPS)


def clients() -> list[Client]:
    return [quadratic_client(f"h{i}", A[i].tolist(), B[i].tolist(), num_examples=N[i]) for i in range(len(A))]


def end(algorithm: AlgorithmSettings, num_rounds: int) -> tuple[Tensor, Tensor]:
    """Return the global model [dim] and the clients' models [client, dim]."""
    state, models = converge_and_deploy(algorithm, clients(), SETTINGS, num_rounds, dim=2)
    return state.params["w"], torch.stack([models[f"h{i}"].params["w"] for i in range(len(A))])


def check(found: Tensor, expected: Tensor, derivation: str, atol: float = 1e-9) -> None:
    print(f"\n{derivation}\nexpected {expected.tolist()}\nfound    {found.tolist()}")
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("lam", [0.0, 0.5, 3.0])
def test_ditto_personal_models_end_at_the_pulled_optimum(lam: float) -> None:
    x, v = end(Ditto(lam=lam), num_rounds=34)
    plain = converge(FedAvg(), clients(), SETTINGS, 34, dim=2).params["w"]
    assert torch.equal(x, plain), "the global model is FedAvg's whatever λ"
    check(
        v,
        (A * B + lam * x) / (A + lam),
        f"λ = {lam}: 0 = ∇F_i(v) + λ(v − x*) = a_i(v − b_i) + λ(v − x*)  ⇒  v_i = (a_i b_i + λ x*)/(a_i + λ)",
    )


def test_ditto_first_round() -> None:
    lam = 0.7
    _, v = end(Ditto(lam=lam), num_rounds=1)
    kept = (1 - LR * (A + lam)) ** STEPS
    check(
        v,
        (1 - kept) * A * B / (A + lam),
        "x = v = 0 at first; a step: v − m ← (1 − η(a + λ))(v − m) with m = ab/(a + λ)\n"
        "⇒ after τ steps v = (1 − (1 − η(a + λ))^τ) m",
    )


@pytest.mark.parametrize(("lam", "beta"), [(2.0, 1.0), (2.0, 1.6), (0.5, 0.5)])
@pytest.mark.parametrize("inner_steps", [1, 3])
def test_pfedme_rounds(lam: float, beta: float, inner_steps: int) -> None:
    rounds, inner_lr = 3, 0.05
    x, theta = end(PFedMe(lam=lam, beta=beta, K=inner_steps, inner_lr=inner_lr), rounds)
    way = (1 - (1 - inner_lr * (A + lam)) ** inner_steps) * A / (A + lam)
    kept = (1 - LR * lam * way) ** STEPS
    fixed = ((1 - kept) * B).sum(0) / (1 - kept).sum(0)
    left = 1 - beta * (1 - kept).mean(0)
    check(
        x,
        fixed * (1 - left**rounds),
        "inner: θ − m ← (1 − α(a + λ))(θ − m), m = (ab + λw)/(a + λ), from θ = w, where w − m = a/(a + λ)·(w − b)\n"
        "⇒ w − θ_K = s (w − b), s = (1 − (1 − α(a + λ))^K) a/(a + λ)\n"
        "local: w − b ← (1 − ηλs)(w − b), so w_i − x = (1 − ρ_i)(b_i − x), ρ_i = (1 − ηλs)^τ\n"
        "server: x ← x + β·mean_i (1 − ρ_i)(b_i − x), all clients alike: x* = Σ(1 − ρ_i)b_i/Σ(1 − ρ_i),\n"
        "x_t − x* = (1 − β·mean(1 − ρ_i))^t (0 − x*)",
    )
    before = fixed * (1 - left ** (rounds - 1))
    local = B + kept * (before - B)
    check(theta, local - way * (local - B), "deployed: θ_i = w_i − s (w_i − b_i) with w_i = b_i + ρ_i (x − b_i)")


def test_pfedme_with_many_inner_steps_deploys_the_proximal_point() -> None:
    """The inner contraction is at most 0.65, and 0.65⁶⁰ < 1e-11."""
    lam = 2.0
    x, theta = end(PFedMe(lam=lam, K=60, inner_lr=0.15), num_rounds=2)
    kept = (1 - LR * lam * A / (A + lam)) ** STEPS
    first = ((1 - kept) * B).mean(0)
    check(
        x,
        first + ((1 - kept) * (B - first)).mean(0),
        "K → ∞: λ(w − θ) = λa/(a + λ)·(w − b) is the gradient of the Moreau envelope; ρ_i = (1 − ηλa/(a + λ))^τ\n"
        "x_t = x_(t−1) + mean (1 − ρ_i)(b_i − x_(t−1)) from 0",
    )
    local = B + kept * (first - B)
    check(theta, (A * B + lam * local) / (A + lam), "θ_i = prox(w_i) = (a_i b_i + λ w_i)/(a_i + λ)")


def test_pfedme_follows_fedavg_where_the_envelope_gradient_is_the_gradient() -> None:
    x, _ = end(PFedMe(K=1, lam=4.0, inner_lr=0.25, weighting="examples"), num_rounds=5)
    plain = converge(FedAvg(), clients(), SETTINGS, 5, dim=2).params["w"]
    check(x, plain, "K = 1: θ = w − α∇F(w), so λ(w − θ) = λα∇F(w) = ∇F(w)", atol=1e-12)
