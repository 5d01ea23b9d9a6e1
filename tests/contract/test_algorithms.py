"""What every registered algorithm must honour."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from federated_toys import SMALL, TASK_X, TASK_Y, Meddler, run, small_exchange, small_model, task_set
from medfed.errors import StudyError
from medfed.federated.algorithms import ALGORITHMS
from medfed.federated.algorithms.base import Algorithm, Federation
from medfed.federated.client import Client, ClientSettings
from medfed.federated.exchange import InProcessExchange
from medfed.federated.rounds import FederatedState, RoundSettings, initial_state, run_round, run_rounds
from medfed.federated.state import fingerprint
from medfed.registry import lookup
from medfed.types import Params

NULL: dict[str, dict[str, float]] = {"fedavg": {}, "fedprox": {"mu": 0.0}}
"""Hyperparameters with which an algorithm is FedAvg, bit for bit."""

HARD = ClientSettings(
    optimizer="adamw", lr=0.02, weight_decay=0.1, batch_size=8, max_grad_norm=1.0, reset_optimizer=False
)
every = pytest.mark.parametrize("algorithm", [kind() for kind in ALGORITHMS.values()], ids=list(ALGORITHMS))


def final(algorithm: Algorithm, **options: object) -> str:
    state = run(algorithm, **options)[-1].state
    return fingerprint(state.params, state.buffers)


def numeric_fields() -> list[tuple[str, str]]:
    return [
        (name, field)
        for name, kind in ALGORITHMS.items()
        for field, info in kind.model_fields.items()
        if isinstance(info.default, int | float) and not isinstance(info.default, bool)
    ]


@pytest.mark.parametrize(("name", "field"), numeric_fields())
def test_every_numeric_hyperparameter_changes_the_result(name: str, field: str) -> None:
    default = ALGORITHMS[name]()
    for value in (getattr(default, field) * 1.5, getattr(default, field) + 0.5):
        other = default.model_validate(default.model_dump() | {field: value})
        assert final(default) != final(other), (
            f"{name}.{field}: {getattr(default, field)} and {value} give the same model"
        )


def test_null_settings_are_fedavg_bit_for_bit() -> None:
    assert NULL.keys() == ALGORITHMS.keys(), "a new algorithm states its null setting here"
    expected = final(ALGORITHMS["fedavg"]())
    for name, fields in NULL.items():
        assert final(ALGORITHMS[name](**fields)) == expected, name


@every
def test_order_of_arrival_does_not_matter(algorithm: Algorithm) -> None:
    assert final(algorithm) == final(algorithm, meddle=lambda answers: answers[::-1])


@every
def test_inputs_are_not_mutated(algorithm: Algorithm) -> None:
    clients = {name: task_set(task, 10, 1) for name, task in (("x", TASK_X), ("y", TASK_Y))}
    exchange = InProcessExchange([Client("h", clients)], small_model(), algorithm, HARD, 0)
    state = initial_state(small_model(), algorithm)
    first = run_round(state, exchange, algorithm, Federation(exchange.registered, 0), RoundSettings())
    watched: dict[str, Params] = {"state": first.state.tensors()} | dict(exchange.states())
    watched |= {name: {k: torch.from_numpy(v) for k, v in s.data.samples.items()} for name, s in clients.items()}
    before = {name: fingerprint(tensors, {}) for name, tensors in watched.items()}
    run_round(first.state, exchange, algorithm, Federation(exchange.registered, 0), RoundSettings())
    assert before == {name: fingerprint(tensors, {}) for name, tensors in watched.items()}


@every
@pytest.mark.parametrize("settings", [SMALL, HARD], ids=["sgd", "adamw-kept"])
def test_resumed_equals_uninterrupted(algorithm: Algorithm, settings: ClientSettings, tmp_path: Path) -> None:
    rounds = RoundSettings(num_rounds=4, participation=0.5)
    whole_exchange = small_exchange(algorithm, settings)
    federation = Federation(whole_exchange.registered, 0)
    start = initial_state(small_model(), algorithm)
    whole = list(run_rounds(start, whole_exchange, algorithm, federation, rounds))

    first = small_exchange(algorithm, settings)
    half = list(run_rounds(start, first, algorithm, federation, rounds.model_copy(update={"num_rounds": 2})))[-1]
    save_file(half.state.tensors(), tmp_path / "server.safetensors")
    for name, tensors in first.states().items():
        save_file(tensors, tmp_path / f"client-{name}.safetensors")
    second = small_exchange(algorithm, settings)
    second.restore({name: load_file(tmp_path / f"client-{name}.safetensors") for name in first.states()})
    restored = FederatedState.from_tensors(load_file(tmp_path / "server.safetensors"))
    rest = list(run_rounds(restored, second, algorithm, federation, rounds))

    assert [result.round for result in rest] == [3, 4]
    assert [result.sampled for result in rest] == [result.sampled for result in whole[2:]]
    assert fingerprint(rest[-1].state.tensors(), {}) == fingerprint(whole[-1].state.tensors(), {})
    for name, tensors in whole_exchange.states().items():
        assert fingerprint(tensors, {}) == fingerprint(second.states()[name], {}), f"client {name}"


@every
def test_partial_participation(algorithm: Algorithm) -> None:
    results = run(algorithm, num_rounds=4, rounds=RoundSettings(participation=0.5))
    assert all(len(result.sampled) == 2 == len(result.clients) for result in results)
    assert len({result.sampled for result in results}) > 1, "the same clients every round"
    assert fingerprint(*results[-1].state.weights) != fingerprint(*results[0].state.weights)


@every
def test_a_client_that_lacks_a_modality_or_task_has_no_weight_there(algorithm: Algorithm) -> None:
    """h3 has task y without modality b, h1 has neither: they must not move the encoder of b."""
    model = initial_state(small_model(), algorithm)
    without = run(algorithm, 1, HARD, meddle=lambda answers: [a for a in answers if a[0] in ("h1", "h3")])[-1]
    assert {record.client for record in without.clients} == {"h1", "h3"}
    for name, value in model.params.items():
        moved = not torch.equal(value, without.state.params[name])
        assert moved == (not name.startswith("encoders.b.")), name
    for name, value in model.buffers.items():
        if name.startswith("encoders.b."):
            assert torch.equal(value, without.state.buffers[name]), name


@every
def test_the_mean_of_a_tensor_is_over_those_who_have_data_for_it(algorithm: Algorithm) -> None:
    """Only h0 (9 examples) and h2 (20) have modality b: with h2 gone, the encoder of b is h0's alone."""
    some = run(algorithm, 1, meddle=lambda answers: [a for a in answers if a[0] != "h2"])[-1].state
    alone = run(algorithm, 1, meddle=lambda answers: [a for a in answers if a[0] == "h0"])[-1].state
    names = [name for name in some.params if name.startswith("encoders.b.")]
    assert names
    assert all(torch.equal(some.params[name], alone.params[name]) for name in names)
    assert not torch.equal(some.params["heads.x.1.weight"], alone.params["heads.x.1.weight"])


@every
def test_seed_decides(algorithm: Algorithm) -> None:
    assert final(algorithm, seed=1) == final(algorithm, seed=1) != final(algorithm, seed=2)


@every
def test_training_lowers_the_loss(algorithm: Algorithm) -> None:
    results = run(algorithm, num_rounds=5)
    for task in ("loss.x", "loss.y"):
        first, last = results[0].clients[0].metrics[task], results[-1].clients[0].metrics[task]
        assert last < first, f"{task}: {first:.3f} in round 1, {last:.3f} in round 6"


def test_an_unknown_name_is_answered_with_suggestions() -> None:
    with pytest.raises(StudyError, match="did you mean fedprox"):
        lookup(ALGORITHMS, "fedproks", "algorithm")


def test_exchange_states_are_complete(tmp_path: Path) -> None:
    algorithm = ALGORITHMS["fedavg"]()
    exchange = small_exchange(algorithm, HARD)
    federation = Federation(exchange.registered, 0)
    run_round(initial_state(small_model(), algorithm), Meddler(exchange, list), algorithm, federation, RoundSettings())
    slots = exchange.states()["h1"]
    assert "optimizer/exp_avg/heads.x.1.weight" in slots
    assert not any("heads.y" in name for name in slots), "h1 has no task y"
