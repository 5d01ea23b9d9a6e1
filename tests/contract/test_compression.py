"""Changes of the weights in fewer bytes: rounding, what the server knows of its error, what the gate refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from medfed.core.catalog import ALGORITHMS
from medfed.core.torch_rng import torch_rng
from medfed.core.types import Params, Update
from medfed.federated.aggregation import Average
from medfed.federated.compression import (
    UploadError,
    compressed,
    has_scales,
    largest_errors,
    reported_errors,
    restore,
    restored,
    to_bfloat16,
    to_int8,
)
from medfed.federated.exchange import Answer, InProcessExchange, Trainer
from medfed.federated.rounds import RoundResult, initial_state, run_round
from medfed.federated.state import fingerprint, num_bytes
from medfed.federated.wire import update_bytes, update_of
from medfed.study.algorithms import AlgorithmSettings, FedAvg, Scaffold
from medfed.study.federation import RoundSettings, UploadDtype
from support.federated_toys import allowed, changed, run, small_clients, small_exchange, small_federation, small_model

DTYPES: tuple[UploadDtype, ...] = ("bfloat16", "int8")
both = pytest.mark.parametrize("dtype", DTYPES)
every = pytest.mark.parametrize("algorithm", [kind() for kind in ALGORITHMS.values()], ids=list(ALGORITHMS))
BAD = "h2"
WEIGHT = "heads.y.1.weight"


def rounded(value: Tensor, dtype: UploadDtype, *key: int) -> tuple[Tensor, Tensor]:
    """Return ``value`` rounded and restored, and what a step is worth at every entry."""
    if dtype == "bfloat16":
        small = to_bfloat16(value, torch_rng(*key))
        assert small.dtype == torch.bfloat16
        return restore(small, None, value.dtype), 2.0 ** (torch.frexp(value).exponent.to(value.dtype) - 8)
    small, scales = to_int8(value, torch_rng(*key))
    assert (small.dtype, scales.dtype, scales.shape) == (torch.int8, torch.float32, value.shape[:1])
    return restore(small, scales, value.dtype), scales.reshape(-1, *[1] * (value.ndim - 1)).expand(value.shape)


def sample(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Entries of very different size, rows of very different size, and a row of zeros."""
    generator = torch.Generator().manual_seed(3)
    value = torch.randn(*shape, generator=generator, dtype=dtype) ** 3
    value *= torch.logspace(-6, 2, shape[0], dtype=dtype).reshape(-1, *[1] * (len(shape) - 1))
    value[1] = 0
    return value


@both
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_every_entry_goes_to_one_of_its_two_neighbours(dtype: UploadDtype, wide: torch.dtype) -> None:
    value = sample(7, 5, 3, dtype=wide)
    there, step = rounded(value, dtype, 0)
    assert there.dtype == wide
    assert bool(((there - value).abs() <= step * (1 + 1e-5)).all())
    assert bool((there[1] == 0).all()), "nothing is no change"
    again, _ = rounded(there, "bfloat16", 9)
    assert dtype == "int8" or torch.equal(again, there), "what bfloat16 can say it says exactly"


@both
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_no_rounding_is_refused_for_its_error(dtype: UploadDtype, wide: torch.dtype) -> None:
    """Each value just above, or below, what can be said: the largest errors there are."""
    rows = torch.tensor([[127.0, 0.999], [1e-42, 3e-45], [0.0, 0.0], [1.0039, -1.0078]], dtype=wide)
    for seed in range(40):
        update = Update("h", 1, "b", {"heads.y.w": rows, "heads.y.b": rows[0]}, 1, 1)
        sent = compressed(update, dtype, seed)
        assert reported_errors(sent)["heads.y"] <= largest_errors(sent)["heads.y"]


@both
def test_rounding_is_unbiased_entry_by_entry(dtype: UploadDtype) -> None:
    value, count = sample(4, 6), 3000
    total = torch.zeros(4, 6, dtype=torch.float64)
    for number in range(count):
        there, step = rounded(value, dtype, number)
        total += there
    # The spread of one rounding is at most half a step, so that of the mean of n is half a step/√n; 5 sigma.
    error = (total / count - value).abs()
    assert bool((error <= 5 * 0.5 * step / math.sqrt(count)).all())
    nearest, _ = rounded(value, dtype, 0)
    assert bool(((nearest - value).abs() > 5 * 0.5 * step / math.sqrt(count)).any()), "one rounding alone is far off"


def test_bfloat16_keeps_what_is_not_finite() -> None:
    value = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0])
    there = to_bfloat16(value, torch_rng(0))
    assert there.isnan().tolist() == [True, False, False, False]
    assert there[1:].tolist() == [math.inf, -math.inf, 1.0]


def test_int8_is_for_rows_of_two_and_more() -> None:
    shapes = [(3, 2), (4, 1, 3, 3), (3,), (), (5, 1), (0, 4), (4, 0)]
    assert [has_scales(shape) for shape in shapes] == [True, True, False, False, False, False, False]


def updates() -> list[Update]:
    """What the four toy hospitals send in a first round, as it is before any rounding."""
    model, exchange = small_model(), small_exchange(FedAvg())
    broadcast = FedAvg().build().broadcast(initial_state(model, FedAvg()), "base")
    found = [answer for _, answer in exchange(1, dict.fromkeys(exchange.registered, broadcast))]
    return [answer for answer in found if isinstance(answer, Update)]


def dtypes_of(update: Update) -> dict[str, torch.dtype]:
    return {name: value.dtype for name, value in update.delta.items()}


def test_float32_is_not_touched() -> None:
    update = updates()[0]
    assert compressed(update, "float32", 0) is update
    assert restored(update, dtypes_of(update)) is update


@both
def test_rounding_depends_on_seed_client_round_and_on_nothing_else(dtype: UploadDtype) -> None:
    update = updates()[0]

    def bits(update: Update, seed: int = 0) -> str:
        found = compressed(update, dtype, seed)
        return fingerprint(found.delta, found.scales)

    torch.manual_seed(1)
    before = bits(update)
    torch.manual_seed(2)
    assert bits(replace(update, delta=dict(reversed(update.delta.items())))) == before
    others = {bits(update, 1), bits(replace(update, round=2)), bits(replace(update, client="other"))}
    assert before not in others
    assert len(others) == 3


def mean(parts: list[Update], delta: Callable[[Update], Params]) -> dict[str, Tensor]:
    average = Average()
    for part in parts:
        average.add(delta(part), part)
    return average.means()


def size(tensors: Params) -> float:
    return sum(float(value.square().sum()) for value in tensors.values())


@both
def test_the_error_that_the_server_tells_is_that_of_the_mean_update(dtype: UploadDtype) -> None:
    exact = updates()
    truth = mean(exact, lambda update: update.delta)
    told, real = [], []
    for seed in range(300):
        sent = [restored(compressed(update, dtype, seed), dtypes_of(update)) for update in exact]
        watch = UploadError()
        got = mean(list(watch.watched(iter(sent))), lambda update: update.delta)
        relative = watch.relative()
        assert relative is not None
        told.append(relative**2 * size(got))
        real.append(size({name: got[name] - value for name, value in truth.items()}))
    gaps = torch.tensor(real, dtype=torch.float64) - torch.tensor(told, dtype=torch.float64)
    # The cross terms of independent errors have the expectation 0: so has the gap, and here is its standard error.
    assert abs(float(gaps.mean())) <= 4 * float(gaps.std()) / math.sqrt(len(gaps))
    assert abs(float(gaps.mean())) < 0.1 * sum(real) / len(real), "too few rounds to tell anything"
    assert 1e-5 < sum(real) / len(real) / size(truth) < 1e-2 if dtype == "int8" else sum(real) / len(real) < 1e-4


@both
def test_the_message_is_small_and_comes_back_as_it_was(dtype: UploadDtype) -> None:
    update = updates()[0]
    big = replace(update, delta={"encoders.a.w": sample(64, 200), "heads.x.b": sample(7, 1)[:, 0]})
    sent = compressed(big, dtype, 0)
    payload = {"bfloat16": 2 * (64 * 200 + 7), "int8": 64 * 200 + 4 * 64 + 4 * 7}[dtype]
    assert num_bytes(sent.delta, sent.scales) == payload
    message = update_bytes(sent)
    assert len(message) - len(update_bytes(replace(sent, delta={}, scales={}))) < payload + 1000
    back = update_of(message)
    assert back.metrics == sent.metrics
    assert fingerprint(back.delta, back.scales) == fingerprint(sent.delta, sent.scales)


def travelling(answers: list[Answer]) -> list[Answer]:
    """Send every answer as bytes, the last one first."""
    return [
        (name, update_of(update_bytes(answer)) if isinstance(answer, Update) else answer)
        for name, answer in reversed(answers)
    ]


def small_run(algorithm: AlgorithmSettings, dtype: UploadDtype, **options: object) -> list[RoundResult]:
    return run(algorithm, rounds=RoundSettings(upload_dtype=dtype), **options)


@cache
def exact_run(algorithm: AlgorithmSettings) -> list[RoundResult]:
    return small_run(algorithm, "float32")


@both
@every
def test_every_algorithm_takes_rounded_changes_and_gives_the_same_bits_over_a_wire(
    algorithm: AlgorithmSettings, dtype: UploadDtype
) -> None:
    here, there = small_run(algorithm, dtype), small_run(algorithm, dtype, meddle=travelling)
    exact = exact_run(algorithm)
    assert [result.failures for result in here] == [(), ()]
    last = [results[-1].state for results in (here, there, exact)]
    prints = [fingerprint(state.params, state.buffers) + fingerprint(state.server_state, {}) for state in last]
    assert prints[0] == prints[1]
    assert [result.upload_error for result in here] == [result.upload_error for result in there]
    assert exact[-1].upload_error == 0.0
    if not algorithm.build().shared(last[0].weights).params:
        assert (here[-1].upload_error, prints[0]) == (None, prints[2]), "no weight travels: nothing is rounded"
        return
    assert prints[0] != prints[2]
    assert 0 < here[-1].upload_error < 0.05
    assert here[-1].clients[0].up_bytes < exact[-1].clients[0].up_bytes
    assert not [name for name in here[-1].clients[0].metrics if name.startswith("upload_error")]


@both
def test_scaffolds_control_variate_stays_the_mean_of_its_clients(dtype: UploadDtype) -> None:
    algorithm, clients = Scaffold(option="I"), small_clients()
    exchange = InProcessExchange(clients, Trainer(small_model(), algorithm, allowed(algorithm), 0, upload_dtype=dtype))
    state = initial_state(small_model(), algorithm)
    for _ in range(2):
        rounds = RoundSettings(upload_dtype=dtype)
        state = run_round(state, exchange, algorithm, small_federation(exchange), rounds).state
    for name in state.params:
        held = [client for client in clients if client.examples({part(name)})[part(name)]]
        own = [exchange.client_state(client.id)[name].double() for client in held]
        assert torch.allclose(state.server_state[f"control/{name}"].double(), sum(own) / len(own), atol=1e-6)


def part(name: str) -> str:
    return ".".join(name.split(".")[:2])


def spoilt(field: str, name: str, make: Callable[[Tensor], Tensor]) -> Callable[[Update], Update]:
    def corrupt(update: Update) -> Update:
        tensors = dict(getattr(update, field))
        return replace(update, **{field: tensors | {name: make(tensors[name])}})

    return corrupt


def telling(value: float | None) -> Callable[[Update], Update]:
    def corrupt(update: Update) -> Update:
        rest = {name: told for name, told in update.metrics.items() if name != "upload_error.heads.y"}
        return replace(update, metrics=rest if value is None else rest | {"upload_error.heads.y": value})

    return corrupt


HOSTILE: dict[str, tuple[Callable[[Update], Update], tuple[str, ...]]] = {
    "nan": (spoilt("scales", WEIGHT, lambda scale: scale * float("nan")), ("scale", WEIGHT, "not finite")),
    "infinite": (spoilt("scales", WEIGHT, lambda scale: scale + float("inf")), ("scale", WEIGHT, "not finite")),
    "negative": (spoilt("scales", WEIGHT, lambda scale: -scale - 1), ("scale", WEIGHT, "allowed is 0 to")),
    "overflowing": (spoilt("scales", WEIGHT, lambda scale: scale + 3e38), ("scale", WEIGHT, "3e+38")),
    "a scale for all": (spoilt("scales", WEIGHT, lambda scale: scale[:1]), ("scale", WEIGHT, "shape (1,)", "(2,)")),
    "no scale": (lambda update: replace(update, scales={}), ("scale", "missing")),
    "another's scale": (
        lambda update: replace(update, scales={**update.scales, "w": torch.ones(1)}),
        ("scale 'w'", "not in the manifest"),
    ),
    "not rounded": (spoilt("delta", WEIGHT, Tensor.float), (WEIGHT, "float32", "int8")),
    "silent": (telling(None), ("does not tell the rounding error", "heads.y")),
    "less than nothing": (telling(-1.0), ("rounding error of 'heads.y' is -1.0",)),
    "more than rounding can do": (telling(1e300), ("rounding error of 'heads.y' is 1e+300",)),
    "not a number": (telling(float("nan")), ("rounding error of 'heads.y' is nan",)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_gate_looks_at_what_travels(name: str) -> None:
    corrupt, words = HOSTILE[name]

    def meddle(answers: list[Answer]) -> list[Answer]:
        return [(client, corrupt(answer) if client == BAD else answer) for client, answer in answers]  # type: ignore[arg-type]

    without = small_run(FedAvg(), "int8", num_rounds=1, meddle=lambda answers: [a for a in answers if a[0] != BAD])[-1]
    result = small_run(FedAvg(), "int8", num_rounds=1, meddle=meddle)[-1]
    (failure,) = result.failures
    assert (failure.client, failure.phase) == (BAD, "gate")
    for word in (f"client '{BAD}'", "next step", *words):
        assert word in failure.reason, failure.reason
    assert fingerprint(*result.state.weights) == fingerprint(*without.state.weights)


@both
def test_a_client_that_diverged_is_refused_with_its_tensor(dtype: UploadDtype) -> None:
    def meddle(answers: list[Answer]) -> list[Answer]:
        return [(client, diverged(answer) if client == BAD else answer) for client, answer in answers]  # type: ignore[arg-type]

    def diverged(update: Update) -> Update:
        delta = {name: torch.full(value.shape, torch.nan) for name, value in update.delta.items()}
        return compressed(replace(update, delta=delta, scales={}), dtype, 0)

    (failure,) = small_run(FedAvg(), dtype, num_rounds=1, meddle=meddle)[-1].failures
    assert any(f"delta {name!r} has" in failure.reason for name in small_model().state_dict())
    assert "not finite" in failure.reason


def test_a_study_without_rounding_takes_none() -> None:
    scales = {WEIGHT: torch.ones(2)}
    result = small_run(FedAvg(), "float32", num_rounds=1, meddle=lambda a: changed(a, BAD, scales=scales))[-1]
    assert "not in the manifest" in result.failures[0].reason
