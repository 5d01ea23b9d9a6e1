"""Closed forms on quadratics in float64 for combinations of what travels, the local step and the server's step.

Client i has F_i(w) = ½ a_i (w − b_i)² per coordinate, takes τ full-gradient steps with learning rate η, and weighs n_i.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medfed.core.types import Batch
from medfed.federated.algorithm import Federation
from medfed.federated.client import Client
from medfed.federated.exchange import InProcessExchange, Trainer
from medfed.federated.rounds import initial_state, run_rounds
from medfed.federated.state import Weights
from medfed.study.algorithms import (
    AlgorithmSettings,
    Composition,
    Ditto,
    FedAdam,
    FedNova,
    FedPer,
    FedProx,
    FedYogi,
    Mean,
    Scaffold,
    Server,
)
from medfed.study.federation import ClientSettings, RoundSettings
from medfed.tasks.base import Task
from support.federated_toys import converge, converge_and_deploy, quadratic_client

A = torch.tensor([[1.0, 4.0], [9.0, 1.5], [2.0, 2.0]], dtype=torch.float64)
B = torch.tensor([[1.0, -1.0], [-2.0, 3.0], [0.5, 4.0]], dtype=torch.float64)
N = torch.tensor([[10.0], [30.0], [20.0]], dtype=torch.float64)
LR, STEPS = 0.15, 5
HUGE = 2.0**40
SETTINGS = ClientSettings(optimizer="sgd", lr=LR, batch_size=64, local_steps=STEPS)
PLAIN_ADAM = FedAdam(beta_1=0.0, beta_2=0.0, tau=HUGE, eta=HUGE)
"""√v + τ = |Δ| + τ, so a step is Δ up to Δ²/τ: a plain one."""


def clients() -> list[Client]:
    return [quadratic_client(f"h{i}", A[i].tolist(), B[i].tolist(), num_examples=int(N[i])) for i in range(len(A))]


def check(found: Tensor, expected: Tensor, derivation: str, atol: float = 1e-9) -> None:
    print(f"\n{derivation}\nexpected {expected.tolist()}\nfound    {found.tolist()}")
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("server", "eta"), [(PLAIN_ADAM, 1.0), (Mean(eta=0.5), 0.5), (Mean(eta=1.3), 1.3)], ids=str)
def test_fedprox_with_a_linear_server_step_is_fedprox_at_another_pace(server: Server, eta: float) -> None:
    mu, rounds = 0.7, 4
    share = N * (1 - (1 - LR * (A + mu)) ** STEPS) * A / (A + mu)
    fixed = (share * B).sum(0) / share.sum(0)
    left = 1 - eta * share.sum(0) / N.sum()
    found = converge(Composition(local=FedProx(mu=mu), server=server), clients(), SETTINGS, rounds, dim=2)
    check(
        found.params["w"],
        fixed * (1 - left**rounds),
        "Σ n_i (y_i − x)/Σ n_i = S (x* − x) with S = Σ s_i/Σ n_i and FedProx's fixed point x* = Σ s_i b_i/Σ s_i,\n"
        "s_i = n_i (1 − ρ_i) a_i/(a_i + μ). x ← x + η S (x* − x) from 0: x_t = (1 − (1 − ηS)^t) x*",
    )


def test_fedprox_with_fedadam_takes_its_first_step_by_hand() -> None:
    eta, tau, mu = 0.3, 0.2, 0.7
    server = FedAdam(eta=eta, tau=tau, beta_1=0.9, beta_2=0.75)
    found = converge(Composition(local=FedProx(mu=mu), server=server), clients(), SETTINGS, 1, dim=2)
    moves = (1 - (1 - LR * (A + mu)) ** STEPS) * A * B / (A + mu)
    delta = (N * moves).sum(0) / N.sum()
    expected = eta * 0.1 * delta / ((0.75 * tau**2 + 0.25 * delta.square()).sqrt() + tau)
    check(
        found.params["w"],
        expected,
        "from 0: y_i = (1 − ρ_i) a_i b_i/(a_i + μ), Δ = Σ n_i y_i/Σ n_i, m = (1 − β1)Δ, v = β2 τ² + (1 − β2)Δ²,\n"
        "x = η m/(√v + τ)",
        atol=1e-12,
    )


def test_ditto_with_fedyogi_is_pulled_to_fedyogis_model() -> None:
    lam, rounds, server = 0.5, 3, FedYogi(eta=0.5, tau=0.1)
    state, models = converge_and_deploy(
        Composition(local=Ditto(lam=lam), server=server), clients(), SETTINGS, rounds, 2
    )
    world = [converge(server, clients(), SETTINGS, number, dim=2).params["w"] for number in range(1, rounds + 1)]
    assert torch.equal(state.params["w"], world[-1]), "the server does not see the personal models"
    v, kept = torch.zeros_like(A), (1 - LR * (A + lam)) ** STEPS
    for x in (torch.zeros_like(A[0]), *world[:-1]):
        middle = (A * B + lam * x) / (A + lam)
        v = middle + kept * (v - middle)
    found = torch.stack([models[f"h{i}"].params["w"] for i in range(len(A))])
    check(found, v, "v ← m + (1 − η(a + λ))^τ (v − m), m = (ab + λx)/(a + λ), x FedYogi's of that round", atol=1e-12)


# --- private tensors: F_i(w, v) = ½ a_i (w + v − b_i)² + ½ d_i v², w shared and v private ---

CURVATURE = torch.tensor([1.0, 3.0, 1.5], dtype=torch.float64)
SPRING = torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64)
CENTRE = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
SIZE = torch.tensor([10.0, 30.0, 20.0], dtype=torch.float64)


class Pair(nn.Module):
    """Two float64 numbers; the quadratic's two coordinates are w + v and v."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.v = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, task: Task, batch: Batch) -> Tensor:
        return torch.cat([self.w + self.v, self.v])


def pair_end(algorithm: AlgorithmSettings, num_rounds: int, lr: float, **fields: object) -> tuple[Tensor, Tensor]:
    """Return w and every client's v after some rounds."""
    rows = zip(CURVATURE.tolist(), SPRING.tolist(), CENTRE.tolist(), SIZE.tolist(), strict=True)
    hospitals = [quadratic_client(f"h{i}", [a, d], [b, 0.0], int(n)) for i, (a, d, b, n) in enumerate(rows)]
    settings = ClientSettings.model_validate({"optimizer": "sgd", "lr": lr, "batch_size": 10} | fields)
    algorithm.check(settings)
    exchange = InProcessExchange(hospitals, Trainer(Pair(), algorithm, settings, 0))
    state = initial_state(Pair(), algorithm)
    federation = Federation(exchange.registered, 0)
    for result in run_rounds(state, exchange, algorithm, federation, RoundSettings(num_rounds=num_rounds)):
        state = result.state
    built, world = algorithm.build(), Weights(state.params, state.buffers)
    local = [built.deployed(world, exchange.client_state(f"h{i}")).params["v"] for i in range(len(hospitals))]
    return state.params["w"][0], torch.cat(local)


PRIVATE = FedPer(private_prefixes=("v",))


def drift(steps: list[int], lr: float) -> Tensor:
    """Return g_i: once a client's v is at rest for a given w, a round moves its w by g_i (b_i − w)."""
    found = []
    for a, d, tau in zip(CURVATURE.tolist(), SPRING.tolist(), steps, strict=True):
        step = torch.eye(2, dtype=torch.float64) - lr * torch.tensor([[a, a], [a, a + d]], dtype=torch.float64)
        turn = torch.linalg.matrix_power(step, tau)
        found.append(1 - turn[0, 0] - turn[0, 1] * turn[1, 0] / (1 - turn[1, 1]))
    return torch.stack(found)


@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold_on_what_travels_finds_the_joint_optimum_which_fedper_misses(option: str) -> None:
    pull = CURVATURE * SPRING / (CURVATURE + SPRING)
    optimum = (pull * CENTRE).sum() / pull.sum()
    private = CURVATURE * (CENTRE - optimum) / (CURVATURE + SPRING)
    algorithm = Composition(sharing=PRIVATE, local=Scaffold.model_validate({"option": option}))
    w, v = pair_end(algorithm, 32, 0.2, local_steps=5)
    check(
        torch.cat([w[None], v]),
        torch.cat([optimum[None], private]),
        "∂F_i/∂v = 0: v_i = a_i (b_i − w)/(a_i + d_i), so min_v F_i = ½ e_i (w − b_i)², e_i = a_i d_i/(a_i + d_i);\n"
        "at rest c_i = ∂F_i/∂w and Σ c_i = 0: w* = Σ e_i b_i/Σ e_i",
        atol=1e-6,
    )
    share = drift([5, 5, 5], 0.2)
    assert abs(float((share * CENTRE).sum() / share.sum() - optimum)) > 0.05, "FedPer's clients drift"


@pytest.mark.parametrize("server", [Mean(), FedNova()], ids=["fedper", "fedper+fednova"])
def test_fednova_normalises_what_travels_by_the_steps_of_both(server: Server) -> None:
    steps = [1, 3, 2]  # one epoch of batches of ten
    share = SIZE * drift(steps, 0.3)
    if isinstance(server, FedNova):
        share = share / torch.tensor(steps)
    w, _ = pair_end(Composition(sharing=PRIVATE, server=server), 60, 0.3)
    check(
        w,
        (share * CENTRE).sum() / share.sum(),
        "z = (w − b, v) turns by R_i = (I − ηH_i)^τ_i, H_i = [[a, a], [a, a + d]]; v_i rests where z_v = (R z)_v:\n"
        "v = R₂₁(w − b)/(1 − R₂₂), so y_i − w = g_i (b_i − w), g_i = 1 − R₁₁ − R₁₂R₂₁/(1 − R₂₂)\n"
        "FedPer: Σ n_i g_i (b_i − w) = 0; FedNova: Σ n_i g_i (b_i − w)/τ_i = 0",
        atol=1e-6,
    )
