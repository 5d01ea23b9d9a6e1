"""Summing 100 updates of 15 million parameters: speed against copying, memory against one update and one sum.

A weighted sum reads the float32 change, and reads and writes the float64 sum: 20 bytes a parameter. Copying float32
moves 8. So a copy of 2.5 times the parameters moves the same bytes: where that takes 30 % of the sum's time, the sum
runs at 30 % of the copy bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.bytes import peak_bytes, size
from benchmarks.rows import Row, Target, counted
from benchmarks.timing import Bench, Run, Versus
from medfed.federated.algorithms.base import Federation
from medfed.federated.algorithms.fedavg import FedAvg
from medfed.federated.exchange import Answer
from medfed.federated.rounds import RoundSettings, run_round
from medfed.federated.state import FederatedState
from medfed.types import Broadcast, Update

EXAMPLES = 7
SUMS, ROUND, COPIED, READ = "sums", "gate, sums and fingerprint", "copying the same bytes", "copying the updates"


def aggregation_rows(bench: Bench) -> Iterator[Row]:
    """Speed over some of the clients, for it grows with their number; memory over all of them."""
    num_tensors, shape, timed, clients = (4, (10, 50), 3, 5) if bench.quick else (30, (1000, 500), 16, 100)
    model = {f"encoders.image.{number}.weight": torch.randn(shape) for number in range(num_tensors)}
    change = {name: value * 0.01 for name, value in model.items()}
    parameters = sum(value.numel() for value in model.values())
    from_, to = torch.randn(5 * parameters // 2), torch.empty(5 * parameters // 2)
    variants: dict[str, Run] = {
        SUMS: partial(_sums, model, change, timed),
        ROUND: partial(_round, model, lambda: change, timed),
        COPIED: lambda: [to.copy_(from_)[:0] for _ in range(timed)],
        READ: lambda: [to[:parameters].copy_(from_[:parameters])[:0] for _ in range(timed)],
    }
    pairs = [
        Versus(COPIED, SUMS, Target("≥", 0.3)),
        Versus(COPIED, ROUND),
        Versus(READ, SUMS),
        Versus(ROUND, SUMS, same=True),
    ]
    of = f"{parameters:,} parameters"
    yield from bench.race("aggregation", f"{timed} clients of {of}", variants, pairs, seconds=30.0)
    peak = peak_bytes(partial(_round, model, lambda: {name: value.clone() for name, value in change.items()}, clients))
    least = ("one update and one sum", 12.0 * parameters)
    over, wanted = ("most memory of a round", float(peak)), Target("≤", 1.1)
    setting = f"{clients} clients of {of}"
    yield counted("aggregation", setting, over, least, measure="peak bytes", target=wanted, takes=size(peak))


def _sums(model: Mapping[str, Tensor], change: Mapping[str, Tensor], clients: int) -> Mapping[str, Tensor]:
    """Aggregate as FedAvg does."""
    state, names = FederatedState(0, model), _names(clients)
    updates = (Update(name, 1, "", change, EXAMPLES, 1) for name in names)
    return FedAvg().aggregate(state, updates, Federation(dict.fromkeys(names, EXAMPLES), 0)).params


def _round(
    model: Mapping[str, Tensor], change: Callable[[], Mapping[str, Tensor]], clients: int
) -> Mapping[str, Tensor]:
    """Run a round whose clients answer at once."""

    def exchange(round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        for name, broadcast in broadcasts.items():
            yield name, Update(name, round, broadcast.base, change(), EXAMPLES, 1)

    federation = Federation(dict.fromkeys(_names(clients), EXAMPLES), 0)
    return run_round(FederatedState(0, model), exchange, FedAvg(), federation, RoundSettings()).state.params


def _names(clients: int) -> list[str]:
    return [f"client-{number:03d}" for number in range(clients)]
