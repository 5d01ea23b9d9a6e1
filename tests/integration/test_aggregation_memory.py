"""Many clients of fifteen million parameters: the server holds one update and one sum, and checks for less."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import pytest
import torch

from medfed.core.types import Broadcast, Update
from medfed.federated.aggregation import Average
from medfed.federated.algorithm import Federation
from medfed.federated.exchange import Answer
from medfed.federated.gate import Gate, Manifest
from medfed.federated.rounds import run_round
from medfed.federated.state import FederatedState
from medfed.study.algorithms import FedAvg
from medfed.study.federation import RoundSettings

NUM_CLIENTS, TENSORS, SHAPE = 25, 5, (2000, 1500)
NUM_PARAMETERS = TENSORS * SHAPE[0] * SHAPE[1]
UPDATE_BYTES, SUM_BYTES = 4 * NUM_PARAMETERS, 8 * NUM_PARAMETERS
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def update(number: int, base: str = "base") -> Update:
    delta = {f"encoders.e.{name}": torch.full(SHAPE, float(number)) for name in range(TENSORS)}
    return Update(f"h{number:03}", 1, base, delta, 1 + number, 1)


class Senders:
    """Clients who all send something else, one after the other."""

    def __call__(self, round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        for name in sorted(broadcasts):
            yield name, update(int(name[1:]), broadcasts[name].base)


def memory(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def round_in_memory() -> tuple[int, int, bool]:
    """Return the bytes a round took at its peak, the clients it heard, and whether its mean is right."""
    params = {f"encoders.e.{name}": torch.zeros(SHAPE) for name in range(TENSORS)}
    federation = Federation({f"h{number:03}": 1 + number for number in range(NUM_CLIENTS)}, 0)
    algorithm = FedAvg().build()
    RESET.write_text("5")
    before = memory("VmRSS")
    result = run_round(FederatedState(0, params), Senders(), algorithm, federation, RoundSettings())
    taken = memory("VmHWM") - before
    # Σ n(1 + n) / Σ (1 + n), n from 0 to 24: 5,200/325 = 16
    right = all(bool((value == 16).all()) for value in result.state.params.values())
    return taken, len(result.clients), right


@pytest.mark.skipif(not (STATUS.exists() and RESET.exists()), reason="peak memory is read from /proc")
def test_a_round_takes_the_memory_of_one_update_and_one_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    # In a process of its own: what earlier tests left free in pieces would be counted again. The C library returns a
    # freed tensor to the system at once; left to itself it keeps some, now and then, and the peak counts them.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        taken, num_clients, right = fresh.submit(round_in_memory).result()
    assert num_clients == NUM_CLIENTS
    assert right
    assert taken <= 1.15 * (UPDATE_BYTES + SUM_BYTES), f"{taken:,} bytes for one update of {UPDATE_BYTES:,} and one sum"
    assert taken >= SUM_BYTES, "the sum alone takes more: nothing was measured"


def test_checking_an_update_costs_no_more_than_summing_it() -> None:
    given = update(3)
    manifest, average = Manifest.of(given.delta, {}, {}), Average()
    average.add(given.delta, given)
    check, add = [], []
    for _ in range(5):
        started = time.process_time()
        Gate(manifest, {given.client: 10}, 1, "base").check(given.client, given)
        checked = time.process_time()
        average.add(given.delta, given)
        check.append(checked - started)
        add.append(time.process_time() - checked)
    assert median(check) <= median(add)


def test_large_values_are_finite_though_their_sum_is_not() -> None:
    delta = {"encoders.e.0": torch.full((3, 4), torch.finfo(torch.float32).max)}
    given = Update("h", 1, "base", delta, 1, 1)
    assert bool(torch.isinf(delta["encoders.e.0"].sum()))
    Gate(Manifest.of(delta, {}, {}), {"h": 1}, 1, "base").check("h", given)
