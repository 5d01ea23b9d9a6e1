"""The hooks that the shipped algorithms leave at their defaults, each used by a sketch of the family it is meant for.

They show that such an algorithm needs no change of the client or the round loop. They are sketches: no study uses them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from medfed.core.types import Broadcast, Params, Update
from medfed.federated.aggregation import Average
from medfed.federated.algorithm import Aggregate, Algorithm, Federation
from medfed.federated.local import LocalStep, Trained, Upload
from medfed.federated.rounds import initial_state, run_round
from medfed.federated.state import FederatedState, Weights, fingerprint, join, split, weights_of
from medfed.study.algorithms import FedAvg
from medfed.study.federation import ClientSettings, RoundSettings
from support.federated_toys import SMALL, changed, converge, quadratic_client, run, small_exchange, small_model, states


class ControlVariates(Algorithm):
    """SCAFFOLD's shape: states on both sides, a gradient correction, tensors in the upload, full participation."""

    name: ClassVar[str] = "control-variates"
    option: int = 2

    def init_server(self, params: Params) -> Params:
        return {name: torch.zeros_like(value) for name, value in params.items()}

    def init_client(self, initial: Weights) -> Params:
        return self.init_server(initial.params)

    def broadcast(self, state: FederatedState, base: str) -> Broadcast:
        return Broadcast(state.round + 1, base, state.params, state.buffers, state.server_state)

    def correct(self, gradients: Params, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Params:
        return {name: value - client_state[name] + broadcast.state[name] for name, value in gradients.items()}

    def upload(self, trained: Trained, broadcast: Broadcast, client_state: Params) -> Upload:
        if self.option == 1:
            new = trained.gradient(broadcast.params)
        else:
            scale = -1 / (trained.num_steps * trained.site.settings.lr)
            delta, common = trained.delta, broadcast.state
            new = {name: own - common[name] + scale * delta[name] for name, own in client_state.items()}
        change = {name: new[name] - own for name, own in client_state.items()}
        return Upload(trained.delta, trained.weights.buffers, change, new)

    def upload_like(self, state: FederatedState, federation: Federation) -> Params:
        return state.params

    def aggregate(self, state: FederatedState, updates: Iterator[Update], federation: Federation) -> Aggregate:
        deltas, controls = Average(), Average()
        for update in updates:
            deltas.add(update.delta, update)
            controls.add(update.state, update)
        return Aggregate(deltas.added_to(state.params), {}, controls.added_to(state.server_state))


@pytest.mark.parametrize("option", [1, 2])
def test_correct_upload_and_states_suffice_for_control_variates(option: int) -> None:
    """With control variates the drift is gone: the end is the optimum Σ n a b / Σ n a, which FedAvg misses."""
    clients = [quadratic_client("h0", [1.0], [1.0], 2), quadratic_client("h1", [5.0], [-2.0], 1)]
    settings = ClientSettings(optimizer="sgd", lr=0.15, local_steps=5)
    optimum = (2 * 1 * 1 + 1 * 5 * -2) / (2 * 1 + 1 * 5)
    found = converge(ControlVariates(option=option), clients, settings, 30, dim=1).params["w"].item()
    drifted = converge(FedAvg(), clients, settings, 15, dim=1).params["w"].item()
    print(f"optimum {optimum}, with control variates {found}, FedAvg {drifted}")
    assert found == pytest.approx(optimum, abs=1e-6)
    assert abs(drifted - optimum) > 0.1


def test_the_gate_wants_exactly_the_declared_state() -> None:
    result = run(
        ControlVariates(),
        1,
        meddle=lambda answers: changed(changed(answers, "h1", state={}), "h2", state={"w": torch.ones(1)}),
    )[-1]
    assert [(failure.client, failure.phase) for failure in result.failures] == [("h1", "gate"), ("h2", "gate")]
    assert "state" in result.failures[0].reason


class Momentum(Algorithm):
    """The adaptive family's shape: a server optimizer on the mean change."""

    name: ClassVar[str] = "momentum"
    beta: float = 0.5

    def init_server(self, params: Params) -> Params:
        return {name: torch.zeros_like(value) for name, value in params.items()}

    def aggregate(self, state: FederatedState, updates: Iterator[Update], federation: Federation) -> Aggregate:
        mean = super().aggregate(state, updates, federation)
        moment = {
            name: self.beta * old + (mean.params[name] - state.params[name]) for name, old in state.server_state.items()
        }
        return Aggregate({name: state.params[name] + moment[name] for name in moment}, mean.buffers, moment)


def test_aggregate_suffices_for_a_server_optimizer() -> None:
    """One client at b, one step that halves the distance: with β the first round is FedAvg's, then velocity adds up."""
    client = [quadratic_client("h", [1.0], [1.0])]
    settings = ClientSettings(optimizer="sgd", lr=0.5, local_steps=1)
    found = [converge(Momentum(), client, settings, rounds, dim=1).params["w"].item() for rounds in (1, 2, 3)]
    # m ← ½m + ½(1 − x), x ← x + m: (m, x) = (½, ½), (½, 1), (¼, 1¼)
    assert found == pytest.approx([0.5, 1.0, 1.25], abs=1e-12)


class OwnNorm(Algorithm):
    """FedBN's and FedPer's shape: some tensors stay at home."""

    name: ClassVar[str] = "own-norm"

    def start(self, broadcast: Broadcast, client_state: Params) -> Weights:
        return self.deployed(Weights(broadcast.params, broadcast.buffers), client_state)

    def deployed(self, weights: Weights, client_state: Params) -> Weights:
        own = split(client_state, ("params", "buffers"))
        return Weights({**weights.params, **own["params"]}, {**weights.buffers, **own["buffers"]})

    def upload(self, trained: Trained, broadcast: Broadcast, client_state: Params) -> Upload:
        def mine(tensors: Params) -> dict[str, Tensor]:
            return {name: value for name, value in tensors.items() if ".layers.1." in name}

        kept = join({"params": mine(trained.weights.params), "buffers": mine(trained.weights.buffers)})
        zeros = {name: torch.zeros_like(value) for name, value in mine(trained.delta).items()}
        return Upload({**trained.delta, **zeros}, broadcast.buffers, client_state=kept)


def test_start_and_deployed_suffice_for_tensors_that_stay_at_home() -> None:
    exchange, algorithm = small_exchange(OwnNorm()), OwnNorm()
    start = state = initial_state(small_model(), algorithm)
    for _ in range(2):
        state = run_round(state, exchange, algorithm, Federation(exchange.registered, 0), RoundSettings()).state
    for name, value in state.params.items():
        assert torch.equal(value, start.params[name]) == (".layers.1." in name), name
    assert fingerprint({}, state.buffers) == fingerprint({}, start.buffers)
    kept = split(states(exchange)["h0"], ("algorithm", "optimizer"))["algorithm"]
    deployed = algorithm.deployed(state.weights, kept)
    norm = "encoders.a.layers.1.weight"
    assert not torch.equal(deployed.params[norm], state.params[norm])
    # Two rounds of 2 steps, both tasks passing through the encoder: the counter was not thrown back.
    assert int(deployed.buffers["encoders.a.layers.1.num_batches_tracked"]) == 2 * 2 * 2


class Beside(Algorithm):
    """Ditto's shape: a second model at the client, pulled towards the global one."""

    name: ClassVar[str] = "beside"
    pull: float = 1.0

    def init_client(self, initial: Weights) -> Params:
        return initial.params

    def personal(self, broadcast: Broadcast, client_state: Params) -> Weights:
        return Weights(client_state, broadcast.buffers)

    def penalty(self, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Tensor | None:
        if not step.personal:
            return None
        return sum(0.5 * self.pull * (y - broadcast.params[name]).square().sum() for name, y in step.params.items())

    def upload(self, trained: Trained, broadcast: Broadcast, client_state: Params) -> Upload:
        assert trained.personal is not None
        return Upload(trained.delta, trained.weights.buffers, client_state=trained.personal.params)

    def deployed(self, weights: Weights, client_state: Params) -> Weights:
        return Weights(client_state, weights.buffers)


def test_personal_suffices_for_a_second_model() -> None:
    exchange = small_exchange(Beside())
    federation, settings = Federation(exchange.registered, 0), RoundSettings(num_rounds=1)
    state = run_round(initial_state(small_model(), Beside()), exchange, Beside(), federation, settings).state
    plain = run(FedAvg(), 1)[-1].state
    assert fingerprint(*state.weights) == fingerprint(*plain.weights), "the second model leaves the global one alone"
    own = {name: split(kept, ("algorithm",))["algorithm"] for name, kept in states(exchange).items()}
    assert len({fingerprint(params, {}) for params in own.values()}) == 4


class Envelope(Algorithm):
    """pFedMe's shape: the gradient is λ(y − θ), with θ a minimiser of the batch's loss + ½λ‖θ − y‖²."""

    name: ClassVar[str] = "envelope"
    pull: float = 2.0

    def correct(self, gradients: Params, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Params:
        theta = {name: value.detach() for name, value in step.params.items()}
        for _ in range(200):
            slope = step.gradient(theta)
            theta = {
                name: value - 0.1 * (slope[name] + self.pull * (value - step.params[name].detach()))
                for name, value in theta.items()
            }
        return {name: self.pull * (value.detach() - theta[name]) for name, value in step.params.items()}


def test_step_gradient_suffices_for_an_inner_problem() -> None:
    """½a(θ − b)² + ½λ(θ − y)² has θ = (ab + λy)/(a + λ), so λ(y − θ) = λa/(a + λ)·(y − b): a step of η from 0."""
    client = [quadratic_client("h", [3.0], [1.0])]
    settings = ClientSettings(optimizer="sgd", lr=0.1, local_steps=1)
    found = converge(Envelope(), client, settings, 1, dim=1).params["w"].item()
    assert found == pytest.approx(0.1 * 2 * 3 / (3 + 2), abs=1e-9)


class Contrast(Algorithm):
    """MOON's shape: representations under the live, the global and the previous model."""

    name: ClassVar[str] = "contrast"
    mu: float = 1.0

    def penalty(self, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Tensor | None:
        def outputs(params: Params) -> list[Tensor]:
            model = step.site.model.eval()
            result = [functional_call(model, dict(params), (task, batch)) for task, batch, _ in step.batches]
            model.train()
            return result

        previous = client_state or broadcast.params
        live, near, far = outputs(step.params), outputs(broadcast.params), outputs(previous)
        terms = [
            (z - g.detach()).square().mean() - 0.1 * (z - p.detach()).square().mean()
            for z, g, p in zip(live, near, far, strict=True)
        ]
        return self.mu * torch.stack(terms).mean()

    def upload(self, trained: Trained, broadcast: Broadcast, client_state: Params) -> Upload:
        return Upload(trained.delta, trained.weights.buffers, client_state=trained.weights.params)


def test_penalty_reaches_batches_model_and_the_previous_model() -> None:
    held, free, plain = (run(algorithm, 2)[-1].state for algorithm in (Contrast(mu=5.0), Contrast(mu=0.0), FedAvg()))
    assert fingerprint(*free.weights) == fingerprint(*plain.weights)
    assert fingerprint(*held.weights) != fingerprint(*plain.weights)


def test_own_gradients_are_those_of_the_whole_objective() -> None:
    """``Trained.gradient`` over batches equals autograd on all data at once."""
    seen: dict[str, Params] = {}

    class Spy(Algorithm):
        name: ClassVar[str] = "spy"

        def upload(self, trained: Trained, broadcast: Broadcast, client_state: Params) -> Upload:
            seen[trained.site.client] = trained.gradient(broadcast.params)
            return super().upload(trained, broadcast, client_state)

    clients = [quadratic_client("h", [3.0, 1.0], [1.0, -2.0], num_examples=5)]
    converge(Spy(), clients, ClientSettings(batch_size=2), 1, dim=2)
    # ∇ ½ a (w − b)² at 0 is −ab, whatever the batches.
    assert seen["h"]["w"].tolist() == pytest.approx([-3.0, 2.0], abs=1e-12)


def test_own_gradients_leave_the_model_alone() -> None:
    seen: list[str] = []

    class Spy(Algorithm):
        name: ClassVar[str] = "spy"

        def upload(self, trained: Trained, broadcast: Broadcast, client_state: Params) -> Upload:
            reached = f"heads.{min(trained.site.tasks)}.1.weight"
            before = fingerprint(*weights_of(trained.site.model))
            assert all(value.any() for name, value in trained.gradient(broadcast.params).items() if name == reached)
            seen.extend([before, fingerprint(*weights_of(trained.site.model))])
            return super().upload(trained, broadcast, client_state)

    run(Spy(), 1)
    assert len(seen) == 8
    assert seen[::2] == seen[1::2]


def test_broadcast_and_settings_reach_the_hooks() -> None:
    facts: list[tuple[int, int, float, int]] = []

    class Spy(Algorithm):
        name: ClassVar[str] = "spy"

        def penalty(self, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Tensor | None:
            facts.append((broadcast.round, step.index, step.site.settings.lr, len(step.batches)))
            return None

    run(Spy(), 1)
    assert facts[:2] == [(1, index, SMALL.lr, 2) for index in range(2)]
