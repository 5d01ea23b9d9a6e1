"""Summing 100 updates of 15 million parameters: speed against copying, memory against one update and one sum.

A weighted sum reads the float32 change, and reads and writes the float64 sum: 20 bytes a parameter. Copying float32
moves 8. So a copy of 2.5 times the parameters moves the same bytes. If this copy takes 30 % of the sum's time, the
sum runs at 30 % of the copy bandwidth. The gate reads the change once more, and is held to the same copy.

Gate and sum are paid for every update. The fingerprint of the model that is sent out is paid once a round, however many
clients answer, and is a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import get_args
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.bytes import peak_bytes, size
from benchmarks.rows import Row, Target, counted
from benchmarks.timing import Bench, Run, Versus
from medfed.core.types import Broadcast, Params, Update
from medfed.federated import rounds
from medfed.federated.algorithm import Federation
from medfed.federated.compression import compressed
from medfed.federated.exchange import Answer
from medfed.federated.rounds import run_round
from medfed.federated.state import FederatedState, fingerprint
from medfed.study.algorithms import FedAvg
from medfed.study.federation import RoundSettings, UploadDtype

EXAMPLES = 7
SUMS, GATED, ROUND = "sums", "gate and sums", "gate, sums and fingerprint"
COPIED, READ, FINGERPRINT = "copying the same bytes", "copying the updates", "fingerprint, once a round"
BANDWIDTH, MEMORY = Target("≥", 0.3), Target("≤", 1.1)


def aggregation_rows(bench: Bench) -> Iterator[Row]:
    """Speed over some of the clients, for it grows with their number."""
    timed = 3 if bench.quick else 16
    model, change = _model(bench)
    parameters, sent = _parameters(model), Update("one", 1, "", change, EXAMPLES, 1)
    from_, to = torch.randn(5 * parameters // 2), torch.empty(5 * parameters // 2)
    variants: dict[str, Run] = {
        SUMS: partial(_sums, model, change, timed),
        GATED: _without_fingerprint(partial(_round, model, lambda: sent, timed)),
        ROUND: partial(_round, model, lambda: sent, timed),
        FINGERPRINT: partial(fingerprint, model, {}),
        COPIED: lambda: [to.copy_(from_)[:0] for _ in range(timed)],
        READ: lambda: [to[:parameters].copy_(from_[:parameters])[:0] for _ in range(timed)],
    }
    pairs = [
        Versus(COPIED, SUMS, BANDWIDTH),
        Versus(COPIED, GATED, BANDWIDTH),
        Versus(COPIED, ROUND),
        Versus(READ, SUMS),
        Versus(GATED, SUMS, same=True),
        Versus(ROUND, SUMS, same=True),
        Versus(FINGERPRINT, GATED),
    ]
    setting = f"{timed} clients of {parameters:,} parameters"
    yield from bench.race("aggregation", setting, variants, pairs, seconds=20.0)


def memory_rows(bench: Bench) -> Iterator[Row]:
    """Memory of a round for every dtype of the uploads; that it does not grow with the clients, float32 shows."""
    model, change = _model(bench)
    parameters = _parameters(model)
    least = ("one update in float32 and one sum", 12.0 * parameters)
    for dtype in get_args(UploadDtype):
        clients = 5 if bench.quick else 100 if dtype == "float32" else 10
        sent = compressed(Update("one", 1, "", change, EXAMPLES, 1), dtype, 0)
        peak = peak_bytes(partial(_round, model, partial(_again, sent), clients, dtype))
        setting = f"{clients} clients of {parameters:,} parameters, uploads in {dtype}"
        over, takes = ("most memory of a round", float(peak)), size(peak)
        yield counted("aggregation", setting, over, least, measure="peak bytes", target=MEMORY, takes=takes)


def _model(bench: Bench) -> tuple[Params, Params]:
    """Return a model, and the change that every client sends."""
    num_tensors, shape = (4, (10, 50)) if bench.quick else (30, (1000, 500))
    model = {f"encoders.image.{number}.weight": torch.randn(shape) for number in range(num_tensors)}
    return model, {name: value * 0.01 for name, value in model.items()}


def _parameters(model: Params) -> int:
    return sum(value.numel() for value in model.values())


def _again(sent: Update) -> Update:
    """Return ``sent`` as if it had just come: with tensors of its own."""
    delta, scales = ({name: value.clone() for name, value in part.items()} for part in (sent.delta, sent.scales))
    return replace(sent, delta=delta, scales=scales)


def _sums(model: Params, change: Params, clients: int) -> Mapping[str, Tensor]:
    """Aggregate as FedAvg does."""
    state, names = FederatedState(0, model), _names(clients)
    updates = (Update(name, 1, "", change, EXAMPLES, 1) for name in names)
    return FedAvg().build().aggregate(state, updates, Federation(dict.fromkeys(names, EXAMPLES), 0)).params


def _round(
    model: Params, answer: Callable[[], Update], clients: int, dtype: UploadDtype = "float32"
) -> Mapping[str, Tensor]:
    """Run a round whose clients answer at once."""

    def exchange(round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        for name, broadcast in broadcasts.items():
            yield name, replace(answer(), client=name, round=round, base=broadcast.base)

    federation, settings = Federation(dict.fromkeys(_names(clients), EXAMPLES), 0), RoundSettings(upload_dtype=dtype)
    return run_round(FederatedState(0, model), exchange, FedAvg(), federation, settings).state.params


def _without_fingerprint(run: Run) -> Run:
    """Return ``run`` with a word in place of the model's fingerprint."""

    def bare() -> object:
        with patch.object(rounds, "fingerprint", lambda *_: "the model"):
            return run()

    return bare


def _names(clients: int) -> list[str]:
    return [f"client-{number:03d}" for number in range(clients)]
