"""SCAFFOLD on quadratics in float64: the exact optimum, the paper's algorithm by hand, and what c is.

Client i has F_i(w) = ½ a_i (w − b_i)² per coordinate and takes τ full-gradient steps with learning rate η.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medfed.core.types import Params, component
from medfed.federated.algorithm import Federation
from medfed.federated.client import Client
from medfed.federated.exchange import InProcessExchange, Trainer
from medfed.federated.rounds import RoundResult, initial_state, run_rounds, sample_clients
from medfed.federated.state import split
from medfed.study.algorithms import AlgorithmSettings, FedAvg, Scaffold
from medfed.study.federation import ClientSettings, RoundSettings
from support.federated_toys import SMALL, Point, allowed, converge, quadratic_client, small_exchange, small_model

A = torch.tensor([[1.0, 4.0], [6.0, 1.5], [2.0, 2.0], [0.5, 3.0]], dtype=torch.float64)
B = torch.tensor([[1.0, -1.0], [-2.0, 3.0], [0.5, 4.0], [5.0, 0.0]], dtype=torch.float64)
N = torch.tensor([[10.0], [30.0], [20.0], [5.0]], dtype=torch.float64)
LR, STEPS = 0.1, 5
PLAIN = ClientSettings(optimizer="sgd", lr=LR, batch_size=64, local_steps=STEPS)


def clients() -> list[Client]:
    return [quadratic_client(f"h{i}", A[i].tolist(), B[i].tolist(), num_examples=int(N[i])) for i in range(len(A))]


def close(found: Tensor, expected: Tensor, derivation: str, atol: float = 1e-9) -> None:
    print(f"\n{derivation}\nexpected {expected.tolist()}\nfound    {found.tolist()}")
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("option", ["I", "II"])
def test_the_end_is_the_optimum_which_fedavg_misses(option: str) -> None:
    optimum = (A * B).sum(0) / A.sum(0)
    algorithm = Scaffold.model_validate({"option": option})
    close(
        converge(algorithm, clients(), PLAIN, 45, dim=2).params["w"],
        optimum,
        "at x* every c_i = ∇F_i(x*), c = Σ ∇F_i(x*)/N = 0, so g_i − c_i + c = 0 and no client moves:\n"
        "Σ a_i (x* − b_i) = 0  ⇒  x* = Σ a_i b_i / Σ a_i",
    )
    kept = (1 - LR * A) ** STEPS
    drifted = (N * (1 - kept) * B).sum(0) / (N * (1 - kept)).sum(0)
    close(converge(FedAvg(), clients(), PLAIN, 40, dim=2).params["w"], drifted, "FedAvg: Σ n(1 − ρ)b / Σ n(1 − ρ)")
    weighted = (N * A * B).sum(0) / (N * A).sum(0)
    assert bool(((drifted - weighted).abs() > 0.05).all()), "FedAvg misses its own, weighted optimum as well"


@pytest.mark.parametrize("option", ["I", "II"])
def test_weighed_by_examples_the_end_is_the_weighted_optimum(option: str) -> None:
    algorithm = Scaffold.model_validate({"option": option, "weighting": "examples"})
    close(
        converge(algorithm, clients(), PLAIN, 45, dim=2).params["w"],
        (N * A * B).sum(0) / (N * A).sum(0),
        "c = Σ n_i c_i / Σ n_i is the gradient of Σ n_i F_i / Σ n_i: x* = Σ n_i a_i b_i / Σ n_i a_i",
    )


def rounds_of(algorithm: AlgorithmSettings, num_rounds: int) -> tuple[InProcessExchange, list[RoundResult]]:
    """Run the quadratics with half of the clients a round."""
    state = initial_state(model := Point(2), algorithm)
    exchange = InProcessExchange(clients(), Trainer(model, algorithm, PLAIN, 0))
    settings = RoundSettings(num_rounds=num_rounds, participation=0.5)
    return exchange, list(run_rounds(state, exchange, algorithm, Federation(exchange.registered, 0), settings))


@pytest.mark.parametrize("option", ["I", "II"])
def test_half_of_the_clients_a_round_reach_the_optimum_too(option: str) -> None:
    algorithm = Scaffold.model_validate({"option": option})
    results = rounds_of(algorithm, 90)[1]
    close(results[-1].state.params["w"], (A * B).sum(0) / A.sum(0), "x* = Σ a_i b_i / Σ a_i")


@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize("eta_g", [1.0, 0.7])
def test_every_round_is_the_papers(option: str, eta_g: float) -> None:
    """Alg. 1, written again from the paper with one tensor per client, half of the clients a round."""
    algorithm = Scaffold.model_validate({"option": option, "eta_g": eta_g})
    results = rounds_of(algorithm, 6)[1]
    num_clients = len(A)
    x, c = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    controls = [torch.zeros(2, dtype=torch.float64) for _ in range(num_clients)]
    federation = Federation({f"h{i}": int(N[i]) for i in range(num_clients)}, 0)
    for number, result in enumerate(results, start=1):
        chosen = [int(name[1:]) for name in sample_clients(federation, RoundSettings(participation=0.5), number)]
        moves, changes = [], []
        for i in chosen:
            y = x.clone()
            for _ in range(STEPS):
                y = y - LR * (A[i] * (y - B[i]) - controls[i] + c)
            new = A[i] * (x - B[i]) if option == "I" else controls[i] - c + (x - y) / (STEPS * LR)
            moves.append(y - x)
            changes.append(new - controls[i])
            controls[i] = new
        x = x + eta_g * torch.stack(moves).mean(0)
        c = c + len(chosen) / num_clients * torch.stack(changes).mean(0)
        close(result.state.params["w"], x, f"x after round {number}", atol=1e-12)
        close(split(result.state.server_state, ("control", "weight"))["control"]["w"], c, f"c after round {number}")


@pytest.mark.parametrize("weighting", ["clients", "examples"])
@pytest.mark.parametrize("option", ["I", "II"])
def test_c_is_the_mean_of_the_c_i_of_those_who_have_data(option: str, weighting: str) -> None:
    """Half of the hospitals a round; h1 and h3 lack modality b, h1 task y, h2 task x. After every round, exactly."""
    algorithm = Scaffold.model_validate({"option": option, "weighting": weighting})
    exchange = small_exchange(algorithm, allowed(algorithm, SMALL))
    state = initial_state(small_model(), algorithm)
    settings = RoundSettings(num_rounds=6, participation=0.5)
    parts = {component(name) for name in state.params}
    examples = {client.id: client.examples(parts) for client in exchange._clients.values()}
    answered: set[str] = set()
    for result in run_rounds(state, exchange, algorithm, Federation(exchange.registered, 3), settings):
        answered |= set(result.sampled)
        server = split(result.state.server_state, ("control", "weight"))["control"]
        for name, found in server.items():
            share = {
                client: (own[component(name)] if client in answered else exchange.registered[client])
                for client, own in examples.items()
            }
            if weighting == "clients":
                share = {client: min(count, 1) for client, count in share.items()}
            own_controls = {client: exchange.client_state(client)[name].double() for client in share}
            mean = sum(count * own_controls[client] for client, count in share.items()) / sum(share.values())
            torch.testing.assert_close(found.double(), mean, rtol=0, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert answered == set(examples), "not every hospital was asked; the test says less than it should"


def test_a_client_without_data_for_a_tensor_keeps_its_control_at_zero() -> None:
    algorithm = Scaffold()
    exchange = small_exchange(algorithm, allowed(algorithm, SMALL))
    settings = RoundSettings(num_rounds=3)
    state = initial_state(small_model(), algorithm)
    list(run_rounds(state, exchange, algorithm, Federation(exchange.registered, 0), settings))
    own: Params = exchange.client_state("h1")
    moved = {name: bool(value.any()) for name, value in own.items()}
    assert not any(is_moved for name, is_moved in moved.items() if name.startswith(("encoders.b.", "heads.y.")))
    assert moved["heads.x.1.weight"]
