"""Sums over clients: weights by component, order, memory."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medfed.core.types import Failure, Params, Update
from medfed.federated.aggregation import CHUNK, Average, in_order
from medfed.federated.wire import update_bytes, update_of


def update(client: str, values: Params, num_examples: int = 1, **examples: int) -> Update:
    named = {name.replace("_", "."): count for name, count in examples.items()}
    return Update(client, 1, "base", values, num_examples, 1, examples=named)


def test_weights_are_examples_by_component() -> None:
    x = {"encoders.a.w": torch.zeros(2), "encoders.b.w": torch.full((2,), 7.0), "heads.t.w": torch.zeros(2)}
    one = {name: torch.full((2,), 1.0) for name in x}
    five = {name: torch.full((2,), 5.0) for name in x}
    mean = Average()
    for answer in (update("h0", one, 30, encoders_a=30, heads_t=10), update("h1", five, 10, encoders_a=10)):
        mean.add(answer.delta, answer)
    after = mean.added_to(x)
    # encoders.a: (30·1 + 10·5)/40 = 2; heads.t: h0 alone; encoders.b: nobody, so it stays.
    assert after["encoders.a.w"].tolist() == [2.0, 2.0]
    assert after["heads.t.w"].tolist() == [1.0, 1.0]
    assert after["encoders.b.w"] is x["encoders.b.w"]


def test_without_examples_by_component_num_examples_counts() -> None:
    mean = Average()
    for client, value, count in (("h0", 1.0, 3), ("h1", 5.0, 1)):
        answer = update(client, {"w": torch.tensor([value])}, count)
        mean.add(answer.delta, answer)
    assert mean.added_to({"w": torch.tensor([10.0])})["w"].item() == 12.0  # 10 + (3·1 + 1·5)/4


def test_buffers_are_averaged_and_counters_take_the_maximum() -> None:
    mean = Average()
    for client, value, steps in (("h0", 1.0, 90), ("h1", 2.0, 40)):
        answer = update(client, {"bn.mean": torch.tensor([value]), "bn.steps": torch.tensor(steps)})
        mean.add(answer.delta, answer)
    after = mean.replacing({"bn.mean": torch.tensor([9.0]), "bn.steps": torch.tensor(5), "ln.x": torch.tensor(1.0)})
    assert (after["bn.mean"].item(), after["bn.steps"].item(), after["ln.x"].item()) == (1.5, 90, 1.0)
    assert after["bn.steps"].dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_sum_is_float64_and_the_result_has_the_models_dtype(dtype: torch.dtype) -> None:
    mean = Average()
    # In float32 the ones would vanish beside 2²⁶; in float64 (2²⁶ + 1 + 1 − 2²⁶)/4 = 0.5.
    for number, value in enumerate((2.0**26, 1.0, 1.0, -(2.0**26))):
        answer = update(f"h{number}", {"w": torch.tensor([value])})
        mean.add(answer.delta, answer)
    after = mean.added_to({"w": torch.zeros(1, dtype=dtype)})["w"]
    assert (after.item(), after.dtype) == (0.5, dtype)


def awkward() -> list[Update]:
    """Deltas whose float64 sum depends on the order: (1e16 + 1) − 1e16 = 0, (1e16 − 1e16) + 1 = 1."""
    values = (1e16, 1.0, -1e16, 1.0)
    return [update(f"h{i}", {"w": torch.tensor([value], dtype=torch.float64)}) for i, value in enumerate(values)]


def total(updates: Iterator[Update]) -> float:
    mean = Average()
    for answer in updates:
        mean.add(answer.delta, answer)
    return mean.added_to({"w": torch.zeros(1, dtype=torch.float64)})["w"].item()


def test_no_order_of_arrival_changes_a_bit() -> None:
    names = ["h0", "h1", "h2", "h3"]
    orders = list(itertools.permutations(awkward()))
    assert len({total(iter(order)) for order in orders}) > 1, "these numbers do not depend on the order: a void test"
    sorted_sums = {total(in_order(((a.client, a) for a in order), names)) for order in orders}
    assert sorted_sums == {total(iter(awkward()))}


def test_failures_and_silence_keep_the_order() -> None:
    answers = {answer.client: answer for answer in awkward()}
    for order in itertools.permutations(("h0", "h1", "h3")):
        arrivals = [(name, Failure(name, 1, "train", "") if name == "h1" else answers[name]) for name in order]
        assert [a.client for a in in_order(arrivals, answers.keys())] == ["h0", "h3"]


def test_memory_does_not_grow_with_the_clients(tmp_path: Path) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def arrivals() -> Iterator[tuple[str, Update]]:
        for number in reversed(range(40)):
            value = torch.zeros(8)
            alive.append(weakref.ref(value))
            yield f"h{number:02}", update(f"h{number:02}", {"w": value})

    def counted() -> Iterator[tuple[str, Update]]:
        nonlocal most
        for arrival in arrivals():
            yield arrival
            del arrival
            most = max(most, sum(ref() is not None for ref in alive))

    line = in_order(counted(), [f"h{number:02}" for number in range(40)], tmp_path)
    first = next(line)
    waiting = len(list(tmp_path.glob("*/*.safetensors")))
    assert (first.client, waiting) == ("h00", 39)
    for number, answer in enumerate(line, start=1):
        assert answer.client == f"h{number:02}"
        assert len(list(tmp_path.glob("*/*.safetensors"))) == 39 - number
    assert most <= 2, f"{most} updates in memory at once"
    assert not list(tmp_path.iterdir()), "the folder of waiting updates is left behind"


def test_an_early_end_removes_the_waiting_updates(tmp_path: Path) -> None:
    answers = awkward()
    line = in_order(
        ((a.client, a) for a in (answers[1], answers[0], answers[2])), [a.client for a in answers], tmp_path
    )
    next(line)
    assert list(tmp_path.iterdir())
    line.close()
    assert not list(tmp_path.iterdir())


def test_an_update_survives_its_bytes() -> None:
    shared = torch.randn(6, generator=torch.Generator().manual_seed(0))
    sent = Update(
        "ward/7 ü",
        3,
        "base",
        {"w": shared.view(2, 3).T, "h": shared.to(torch.bfloat16), "s": torch.tensor(2.0)},
        5,
        9,
        buffers={"n": torch.tensor(4), "empty": torch.zeros(0, 3)},
        state={"w": shared, "view": shared[:2], "wide": torch.ones(1).expand(4)},
        examples={"encoders.a": 5},
        metrics={"loss.x": 0.1},
    )
    read = update_of(update_bytes(sent))
    for kind in ("delta", "buffers", "state"):
        before, after = getattr(sent, kind), getattr(read, kind)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert all(before[name].dtype == after[name].dtype for name in before)
    same = ("client", "round", "base", "num_examples", "num_steps", "examples", "metrics")
    assert all(getattr(sent, name) == getattr(read, name) for name in same)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_sums_in_pieces_are_those_of_whole_tensors(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = {"w": (3, CHUNK // 2 + 7), "transposed": (CHUNK + 1, 2), "b": (5,), "scalar": ()}
    mean, wanted = Average(), dict.fromkeys(shapes, 0.0)
    for number in range(3):
        values = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
        values["transposed"] = values["transposed"].T.contiguous().T  # another order in memory
        answer = update(f"h{number}", values, 3 + number)
        before = {name: value.clone() for name, value in values.items()}
        mean.add(values, answer)
        assert all(torch.equal(values[name], before[name]) for name in shapes), "the update itself was changed"
        wanted = {name: wanted[name] + (3 + number) * values[name].to(torch.float64) for name in shapes}
    for name, total in mean.sums().items():
        # float64 entries times 3, 4 and 5 round; the others are exact in float64.
        assert torch.allclose(total, wanted[name], rtol=1e-15)
        assert dtype == torch.float64 or torch.equal(total, wanted[name])
    start = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    sums = mean.sums()
    for name, value in mean.added_to(start).items():
        assert torch.equal(value, (start[name].to(torch.float64) + sums[name] / 12).to(torch.float32))
