"""What every registered algorithm must honour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar, get_args, get_origin

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from medfed.core.catalog import ALGORITHMS
from medfed.core.errors import StudyError
from medfed.core.types import Broadcast, Params, Update
from medfed.federated.algorithm import Federation
from medfed.federated.client import Client
from medfed.federated.exchange import Answer, InProcessExchange, Trainer
from medfed.federated.rounds import initial_state, run_round, run_rounds
from medfed.federated.state import FederatedState, fingerprint
from medfed.study.algorithms import AlgorithmSettings, Composition
from medfed.study.federation import ClientSettings, RoundSettings
from support.federated_toys import (
    SMALL,
    TASK_X,
    TASK_Y,
    Meddler,
    allowed,
    run,
    run_and_deploy,
    small_exchange,
    small_federation,
    small_model,
    small_public,
    states,
    task_set,
)

HUGE = 2.0**40

NULL: dict[str, dict[str, float | str | tuple[str, ...]] | None] = {
    "fedavg": {},
    "fedprox": {"mu": 0.0},
    "scaffold": {"control": 0.0, "weighting": "examples"},
    "fednova": {"mu": 0.0},
    "fedadagrad": {"beta_1": 0.0, "tau": HUGE, "eta": 2 * HUGE},  # √v = τ, up to Δ²/τ²
    "fedadam": {"beta_1": 0.0, "beta_2": 0.0, "tau": HUGE, "eta": HUGE},  # √v = |Δ|, nothing beside τ
    "fedyogi": {"beta_1": 0.0, "beta_2": 0.0, "tau": HUGE, "eta": 2 * HUGE},  # √v = τ, up to Δ²/τ²
    "fedams": {"beta_1": 0.0, "epsilon": HUGE, "eta": HUGE**0.5},  # √v̂ = √ε
    "moon": {"mu": 0.0},
    "creamfl": None,  # no weight travels
    "fedper": {"private_prefixes": ()},
    "fedbn": None,  # a model without batch normalisation is refused
    "ditto": {},  # of the server's model, whatever λ
    "pfedme": {"K": 1, "inner_lr": 1 / 16, "lam": 16.0, "weighting": "examples"},
}
"""Hyperparameters with which an algorithm's global model is FedAvg's, bit for bit; None where there are none."""

NULL_CLIENTS: dict[str, dict[str, int]] = {
    "fednova": {"local_steps": 3},  # equal steps: nothing to normalise
}
"""Client settings that belong to the null setting of some."""

NULL_ATOL: dict[str, float] = {
    "fednova": 1e-6,  # a quotient and a product that cancel up to rounding
    "fedadagrad": 1e-6,  # τ is large, not infinite
    "fedadam": 1e-6,
    "fedyogi": 1e-6,
    "pfedme": 1e-6,  # w − (w − g)
}
"""How near FedAvg those come that cannot reach it bit for bit."""

HARD = ClientSettings(
    optimizer="adamw", lr=0.02, weight_decay=0.1, batch_size=8, max_grad_norm=1.0, reset_optimizer=False
)


COMBINED: tuple[dict[str, object], ...] = (
    {"sharing": "fedbn", "local": {"name": "fedprox", "mu": 0.1}, "server": "fedadam"},
    {"sharing": "fedper", "local": "scaffold"},
    {"sharing": "fedbn", "local": "moon", "server": "fedyogi"},
    {"local": "ditto", "server": "fedams"},
    {"sharing": "fedper", "local": {"name": "fedprox", "mu": 0.1}, "server": "fednova"},
)
"""Combinations in which every slot, and every pair of places that keep state, is used."""


def variants() -> dict[str, AlgorithmSettings]:
    """Every registered algorithm by default and with every other choice of a word, and a few combinations."""
    combined = [Composition.model_validate(parts) for parts in COMBINED]
    return alone() | {algorithm.label: algorithm for algorithm in combined}


def alone() -> dict[str, AlgorithmSettings]:
    """Every registered algorithm by default, and with every other choice of the fields that offer a few words."""
    found: dict[str, AlgorithmSettings] = {}
    for name, kind in ALGORITHMS.items():
        found[name] = kind()
        for field, info in kind.model_fields.items():
            choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
            for choice in choices:
                if choice != info.default:
                    found[f"{name}-{field}-{choice}"] = kind.model_validate({field: choice})
    return found


def shares(algorithm: AlgorithmSettings) -> bool:
    """Whether any tensor of the model travels."""
    return bool(algorithm.build().shared(initial_state(small_model(), algorithm).weights).params)


every = pytest.mark.parametrize("algorithm", list(variants().values()), ids=list(variants()))
sharing = pytest.mark.parametrize(
    "algorithm",
    [algorithm for algorithm in variants().values() if shares(algorithm)],
    ids=[name for name, algorithm in variants().items() if shares(algorithm)],
)
"""For what only means of weights can honour; what stays at the clients is left out."""


def final(algorithm: AlgorithmSettings, **options: object) -> list[str]:
    """Fingerprints of all that a run leaves: the server's model and state, and every client's model."""
    results, models = run_and_deploy(algorithm, **options)
    state = results[-1].state
    return [fingerprint(*weights) for weights in (state.weights, *models.values())] + [
        fingerprint(state.server_state, {})
    ]


@cache
def default_end(name: str) -> list[str]:
    """What :func:`final` gives of an algorithm by default: the reference of all its fields."""
    return final(ALGORITHMS[name]())


def numeric_fields() -> list[tuple[str, str]]:
    return [
        (name, field)
        for name, kind in ALGORITHMS.items()
        for field, info in kind.model_fields.items()
        if isinstance(info.default, int | float) and not isinstance(info.default, bool)
    ]


def others(default: AlgorithmSettings, field: str) -> list[AlgorithmSettings]:
    """The algorithm with other values of a field, as far as they are allowed."""
    value, found = getattr(default, field), []
    for other in (value * 1.5, value + 0.5, value * 0.5, value + 1):
        if other != value:
            try:
                found.append(type(default).model_validate(default.model_dump() | {field: other}))
            except ValidationError:
                continue
    return found


@pytest.mark.parametrize(("name", "field"), numeric_fields())
def test_every_numeric_hyperparameter_changes_the_result(name: str, field: str) -> None:
    default = ALGORITHMS[name]()
    changed = others(default, field)
    assert changed, f"{name}.{field}: no other value to try"
    for other in changed:
        values = [getattr(algorithm, field) for algorithm in (default, other)]
        assert default_end(name) != final(other), f"{name}.{field}: {values[0]} and {values[1]} give the same model"


def test_every_choice_changes_the_result() -> None:
    for name, algorithm in alone().items():
        default = ALGORITHMS[algorithm.name]()
        assert algorithm == default or final(algorithm) != default_end(algorithm.name), name


def test_every_algorithm_states_its_null_setting() -> None:
    assert NULL.keys() == ALGORITHMS.keys()


@pytest.mark.parametrize("name", [name for name, fields in NULL.items() if fields is not None])
def test_null_settings_are_fedavg(name: str) -> None:
    algorithm = ALGORITHMS[name].model_validate(NULL[name])
    settings = allowed(algorithm, SMALL.model_copy(update=NULL_CLIENTS.get(name, {})))
    found, plain = (run(kind, 3, settings)[-1].state for kind in (algorithm, ALGORITHMS["fedavg"]()))
    if name not in NULL_ATOL:
        assert fingerprint(*found.weights) == fingerprint(*plain.weights)
    for mine, theirs in zip(found.weights, plain.weights, strict=True):
        torch.testing.assert_close(dict(mine), dict(theirs), rtol=0, atol=NULL_ATOL.get(name, 0.0))


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "fedavg"])
def test_no_algorithm_is_fedavg_by_another_name(name: str) -> None:
    algorithm = ALGORITHMS[name]()
    settings = allowed(algorithm)
    assert final(algorithm, settings=settings) != final(ALGORITHMS["fedavg"](), settings=settings)


@every
def test_bfloat16_trains_and_keeps_every_dtype(algorithm: AlgorithmSettings) -> None:
    rounded = run(algorithm, 2, SMALL.model_copy(update={"precision": "bfloat16"}))[-1]
    exact = run(algorithm, 2)[-1]
    assert not rounded.failures
    assert fingerprint(*rounded.state.weights) != fingerprint(*exact.state.weights), "nothing ran in bfloat16"
    for name, value in rounded.state.tensors().items():
        assert bool(torch.isfinite(value).all()), name
        assert value.dtype == exact.state.tensors()[name].dtype, name


@every
def test_order_of_arrival_does_not_matter(algorithm: AlgorithmSettings) -> None:
    assert final(algorithm) == final(algorithm, meddle=lambda answers: answers[::-1])


class Backwards:
    """An exchange that hands every set of named tensors on with its names in the opposite order, as a wire may."""

    def __init__(self, inner: InProcessExchange) -> None:
        self._inner = inner

    def __call__(self, round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        turned = {name: backwards(broadcast, "params", "buffers", "state") for name, broadcast in broadcasts.items()}
        for name, answer in self._inner(round, turned):
            yield name, backwards(answer, "delta", "buffers", "state") if isinstance(answer, Update) else answer


Message = TypeVar("Message", Broadcast, Update)


def backwards(message: Message, *groups: str) -> Message:
    return replace(message, **{group: dict(reversed(getattr(message, group).items())) for group in groups})


@every
def test_the_order_of_names_does_not_matter(algorithm: AlgorithmSettings) -> None:
    ends = []
    for turned in (False, True):
        inner = small_exchange(algorithm)
        exchange = Backwards(inner) if turned else inner
        state = initial_state(small_model(), algorithm)
        rounds = run_rounds(state, exchange, algorithm, small_federation(inner), RoundSettings(num_rounds=3))
        last = list(rounds)[-1].state
        kept = [fingerprint(own, {}) for own in states(inner).values()]
        ends.append([fingerprint(*last.weights), fingerprint(last.server_state, {}), *kept])
    assert ends[0] == ends[1]


@every
def test_inputs_are_not_mutated(algorithm: AlgorithmSettings) -> None:
    clients = {name: task_set(task, 10, 1) for name, task in (("x", TASK_X), ("y", TASK_Y))}
    client = Client("h", clients, small_public())
    exchange = InProcessExchange([client], Trainer(small_model(), algorithm, allowed(algorithm, HARD), 0))
    federation = small_federation(exchange)
    first = run_round(initial_state(small_model(), algorithm), exchange, algorithm, federation, RoundSettings())
    watched: dict[str, Params] = {"state": first.state.tensors()} | dict(states(exchange))
    sets = clients | {f"public {name}": examples for name, examples in client.public.items()}
    watched |= {name: {k: torch.from_numpy(v) for k, v in s.data.samples.items()} for name, s in sets.items()}
    before = {name: fingerprint(tensors, {}) for name, tensors in watched.items()}
    run_round(first.state, exchange, algorithm, federation, RoundSettings())
    assert before == {name: fingerprint(tensors, {}) for name, tensors in watched.items()}


@every
@pytest.mark.parametrize("settings", [SMALL, HARD], ids=["sgd", "adamw-kept"])
def test_resumed_equals_uninterrupted(algorithm: AlgorithmSettings, settings: ClientSettings, tmp_path: Path) -> None:
    rounds, settings = RoundSettings(num_rounds=4, participation=0.5), allowed(algorithm, settings)
    whole_exchange = small_exchange(algorithm, settings)
    federation = small_federation(whole_exchange)
    start = initial_state(small_model(), algorithm)
    whole = list(run_rounds(start, whole_exchange, algorithm, federation, rounds))

    first = small_exchange(algorithm, settings)
    half = list(run_rounds(start, first, algorithm, federation, rounds.model_copy(update={"num_rounds": 2})))[-1]
    save_file(half.state.tensors(), tmp_path / "server.safetensors")
    for name, tensors in states(first).items():
        save_file(tensors, tmp_path / f"client-{name}.safetensors")
    second = small_exchange(algorithm, settings)
    for name in states(first):
        second.trainer.memory.keep(name, 0, load_file(tmp_path / f"client-{name}.safetensors"))
    restored = FederatedState.from_tensors(load_file(tmp_path / "server.safetensors"))
    rest = list(run_rounds(restored, second, algorithm, federation, rounds))

    assert [result.round for result in rest] == [3, 4]
    assert [result.sampled for result in rest] == [result.sampled for result in whole[2:]]
    assert fingerprint(rest[-1].state.tensors(), {}) == fingerprint(whole[-1].state.tensors(), {})
    for name, tensors in states(whole_exchange).items():
        assert fingerprint(tensors, {}) == fingerprint(states(second)[name], {}), f"client {name}"


@every
def test_partial_participation(algorithm: AlgorithmSettings) -> None:
    results = run(algorithm, num_rounds=4, rounds=RoundSettings(participation=0.5))
    assert all(len(result.sampled) == 2 == len(result.clients) for result in results)
    assert len({result.sampled for result in results}) > 1, "the same clients every round"
    assert fingerprint(*results[-1].state.weights) != fingerprint(*results[0].state.weights)


@sharing
def test_a_client_that_lacks_a_modality_or_task_has_no_weight_there(algorithm: AlgorithmSettings) -> None:
    """h3 has task y without modality b, h1 has neither: they must not move the encoder of b."""
    model = initial_state(small_model(), algorithm)
    without = run(algorithm, 1, HARD, meddle=lambda answers: [a for a in answers if a[0] in ("h1", "h3")])[-1]
    assert {record.client for record in without.clients} == {"h1", "h3"}
    shared = algorithm.build().shared(model.weights)
    for name, value in shared.params.items():
        moved = not torch.equal(value, without.state.params[name])
        assert moved == (not name.startswith("encoders.b.")), name
    for name, value in shared.buffers.items():
        if name.startswith("encoders.b."):
            assert torch.equal(value, without.state.buffers[name]), name


@sharing
def test_the_mean_of_a_tensor_is_over_those_who_have_data_for_it(algorithm: AlgorithmSettings) -> None:
    """Only h0 (9 examples) and h2 (20) have modality b: with h2 gone, the encoder of b is h0's alone."""
    some = run(algorithm, 1, meddle=lambda answers: [a for a in answers if a[0] != "h2"])[-1].state
    alone = run(algorithm, 1, meddle=lambda answers: [a for a in answers if a[0] == "h0"])[-1].state
    names = [name for name in algorithm.build().shared(some.weights).params if name.startswith("encoders.b.")]
    assert names
    assert all(torch.equal(some.params[name], alone.params[name]) for name in names)
    everyone = "encoders.a.layers.0.weight"
    assert not torch.equal(some.params[everyone], alone.params[everyone])


@every
def test_seed_decides(algorithm: AlgorithmSettings) -> None:
    assert final(algorithm, seed=1) == final(algorithm, seed=1) != final(algorithm, seed=2)


@every
def test_training_lowers_the_loss(algorithm: AlgorithmSettings) -> None:
    results = run(algorithm, num_rounds=5)
    for task in ("loss.x", "loss.y"):
        first, last = results[0].clients[0].metrics[task], results[-1].clients[0].metrics[task]
        assert last < first, f"{task}: {first:.3f} in round 1, {last:.3f} in round 6"


def test_an_unknown_name_is_answered_with_suggestions() -> None:
    with pytest.raises(StudyError, match="did you mean fedprox"):
        ALGORITHMS.lookup("fedproks")


def test_exchange_states_are_complete(tmp_path: Path) -> None:
    algorithm = ALGORITHMS["fedavg"]()
    exchange = small_exchange(algorithm, HARD)
    federation = Federation(exchange.registered, 0)
    run_round(initial_state(small_model(), algorithm), Meddler(exchange, list), algorithm, federation, RoundSettings())
    slots = states(exchange)["h1"]
    assert "optimizer/exp_avg/heads.x.1.weight" in slots
    assert not any("heads.y" in name for name in slots), "h1 has no task y"
