"""A client that sends rubbish is refused by name, and the round ends as if it had not taken part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from medfed.core.errors import RunError
from medfed.core.types import Failure, Update
from medfed.federated.algorithm import Federation
from medfed.federated.client import Client
from medfed.federated.exchange import Answer, InProcessExchange, Trainer
from medfed.federated.rounds import initial_state, run_round
from medfed.federated.state import fingerprint
from medfed.study.algorithms import FedAvg
from medfed.study.federation import ClientSettings, RoundSettings
from support.federated_toys import TASK_X, changed, run, small_clients, small_model, states, task_set

BAD = "h2"
WEIGHT = "heads.y.1.weight"
MEAN = "encoders.a.layers.1.running_mean"


def tensor(kind: str, name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Update], Update]:
    def corrupt(update: Update) -> Update:
        tensors = dict(getattr(update, kind))
        return replace(update, **{kind: tensors | {name: make(tensors[name])}})

    return corrupt


def with_one(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def make(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        copy.view(-1)[-1] = value
        return copy

    return make


def without(update: Update) -> Update:
    return replace(update, delta={name: value for name, value in update.delta.items() if name != WEIGHT})


CORRUPTIONS: dict[str, tuple[Callable[[Update], Update], tuple[str, ...]]] = {
    "nan": (tensor("delta", WEIGHT, with_one(float("nan"))), (WEIGHT, "1 of 16", "not finite")),
    "inf": (tensor("delta", WEIGHT, with_one(float("inf"))), (WEIGHT, "not finite")),
    "nan buffer": (tensor("buffers", MEAN, with_one(float("nan"))), (MEAN, "not finite")),
    "wrong shape": (tensor("delta", WEIGHT, lambda value: value.T), (WEIGHT, "shape (8, 2)", "(2, 8)")),
    "broadcastable": (tensor("delta", WEIGHT, lambda value: torch.zeros(1)), (WEIGHT, "shape (1,)", "(2, 8)")),
    "scalar": (tensor("delta", WEIGHT, lambda value: torch.tensor(0.0)), (WEIGHT, "shape ()")),
    "wrong dtype": (tensor("delta", WEIGHT, torch.Tensor.double), (WEIGHT, "float64", "float32")),
    "sparse": (tensor("delta", WEIGHT, torch.Tensor.to_sparse), (WEIGHT, "sparse")),
    "integer buffer as float": (
        tensor("buffers", "encoders.a.layers.1.num_batches_tracked", torch.Tensor.float),
        ("num_batches_tracked", "int64"),
    ),
    "missing tensor": (without, (WEIGHT, "missing")),
    "extra tensor": (
        lambda update: replace(update, delta={**update.delta, "backdoor": torch.zeros(1)}),
        ("backdoor", "not in the manifest"),
    ),
    "state nobody asked for": (lambda update: replace(update, state={"c": torch.zeros(1)}), ("state 'c'",)),
    "a billion examples": (lambda update: replace(update, num_examples=10**9), ("1000000000", "1 to 20")),
    "one example too many": (lambda update: replace(update, num_examples=21), ("21", "1 to 20")),
    "minus five": (lambda update: replace(update, num_examples=-5), ("-5",)),
    "zero examples": (lambda update: replace(update, num_examples=0), ("num_examples is 0",)),
    "zero steps": (lambda update: replace(update, num_steps=0), ("num_steps",)),
    "component too many": (
        lambda update: replace(update, examples={**update.examples, "heads.y": 21}),
        ("heads.y", "0 to 20"),
    ),
    "component negative": (lambda update: replace(update, examples={**update.examples, "heads.y": -1}), ("heads.y",)),
    "component unknown": (lambda update: replace(update, examples={"heads.z": 3}), ("heads.z",)),
    "stale round": (lambda update: replace(update, round=0), ("round 0", "round 1")),
    "wrong base": (lambda update: replace(update, base="f" * 64), ("ffffffffffff",)),
    "someone else's name": (lambda update: replace(update, client="h0"), ("'h0'",)),
    "metric not finite": (lambda update: replace(update, metrics={"loss.y": float("nan")}), ("loss.y",)),
}


def corrupted(corrupt: Callable[[Update], Update]) -> Callable[[list[Answer]], list[Answer]]:
    def meddle(answers: list[Answer]) -> list[Answer]:
        return [(name, corrupt(answer) if name == BAD else answer) for name, answer in answers]  # type: ignore[arg-type]

    return meddle


@pytest.fixture(scope="module")
def expected() -> str:
    """The round without the bad client."""
    result = run(FedAvg(), 1, meddle=lambda answers: [answer for answer in answers if answer[0] != BAD])[-1]
    return fingerprint(*result.state.weights)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_bad_update_is_refused_by_name_and_the_round_goes_on(name: str, expected: str) -> None:
    corrupt, words = CORRUPTIONS[name]
    result = run(FedAvg(), 1, meddle=corrupted(corrupt))[-1]
    (failure,) = result.failures
    assert (failure.client, failure.phase, failure.round) == (BAD, "gate", 1)
    for word in (f"client '{BAD}'", "next step", *words):
        assert word in failure.reason, failure.reason
    assert [record.client for record in result.clients] == ["h0", "h1", "h3"]
    assert fingerprint(*result.state.weights) == expected


def test_a_second_answer_is_refused_and_the_first_one_counts() -> None:
    clean = run(FedAvg(), 1)[-1]
    result = run(FedAvg(), 1, meddle=lambda answers: [*answers, *changed(answers, BAD, num_examples=1)])[-1]
    assert [failure.client for failure in result.failures] == ["h0", "h1", "h2", "h3"]
    assert all("already answered" in failure.reason for failure in result.failures)
    assert fingerprint(*result.state.weights) == fingerprint(*clean.state.weights)


def test_an_unknown_client_is_refused() -> None:
    clean = run(FedAvg(), 1)[-1]
    result = run(FedAvg(), 1, meddle=lambda answers: [*answers, ("stranger", answers[0][1])])[-1]
    assert [(failure.client, failure.phase) for failure in result.failures] == [("stranger", "gate")]
    assert fingerprint(*result.state.weights) == fingerprint(*clean.state.weights)


def test_a_client_that_was_not_sampled_is_refused() -> None:
    rounds = RoundSettings(clients_per_round=2)
    clean = run(FedAvg(), 1, rounds=rounds)[-1]
    other = sorted({"h0", "h1", "h2", "h3"} - set(clean.sampled))[0]
    result = run(FedAvg(), 1, rounds=rounds, meddle=lambda a: [*a, (other, replace(a[0][1], client=other))])[-1]
    assert [failure.client for failure in result.failures] == [other]
    assert "not sampled" in result.failures[0].reason


def test_a_silent_client_is_recorded(expected: str) -> None:
    result = run(FedAvg(), 1, meddle=lambda answers: [answer for answer in answers if answer[0] != BAD])[-1]
    assert result.failures == (Failure(BAD, 1, "exchange", "no answer"),)
    assert fingerprint(*result.state.weights) == expected


def test_too_few_usable_updates_end_the_run_and_list_the_failures() -> None:
    nan = CORRUPTIONS["nan"][0]
    with pytest.raises(
        RunError, match=r"(?s)round 1: 2 usable updates.*min_clients is 3.*h1 \(exchange\).*h2 \(gate\)"
    ):
        run(
            FedAvg(),
            1,
            rounds=RoundSettings(min_clients=3),
            meddle=lambda answers: [a for a in corrupted(nan)(answers) if a[0] != "h1"],
        )


def test_a_loss_that_is_not_finite_names_client_round_task_and_step() -> None:
    bad = task_set(TASK_X, 12, 3)
    bad.data.samples["a"][5] = float("inf")
    clients = [client for client in small_clients() if client.id != "h1"] + [Client("h1", {"x": bad})]
    exchange = InProcessExchange(clients, Trainer(small_model(), FedAvg(), ClientSettings(batch_size=4), 0))
    state = initial_state(small_model(), FedAvg())
    result = run_round(state, exchange, FedAvg(), Federation(exchange.registered, 0), RoundSettings())
    (failure,) = result.failures
    assert (failure.client, failure.phase) == ("h1", "train")
    for word in ("client 'h1'", "round 1", "task 'x'", "step ", "nan", "lower client.lr"):
        assert word in failure.reason, failure.reason
    assert "h1" not in states(exchange), "a failed client keeps the state it had"
    assert all(torch.isfinite(value).all() for value in result.state.params.values())
