"""In a study that injects, encoders and heads travel, rounded; projectors, router, experts never leave the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from torch import Tensor

from medfed.algorithms.composed import Composed
from medfed.core.progress import Reporter
from medfed.core.types import Broadcast, Params, Update
from medfed.data.cohort import Cohort
from medfed.federated.exchange import Answer, ClientExchange
from medfed.federated.state import num_bytes, persistent_buffers, split, trainable_params
from medfed.federated.wire import broadcast_bytes, update_bytes
from medfed.records.folder import RunFolder
from medfed.records.schema import Round
from medfed.runs.checkpoints import Checkpoints
from medfed.runs.context import RunPaths, here
from medfed.runs.federation import build_model, in_process
from medfed.runs.pipeline import run_study
from medfed.study.study import Study, study_of

NUM_ROUNDS, NUM_CLIENTS = 2, 2
STUDY = {
    "name": "small",
    "train": ["ead"],
    "baselines": [],
    "algorithm": "fedavg",
    "twins": {"num_patients": 40},
    "partition": {"num_clients": NUM_CLIENTS},
    "rounds": {"num_rounds": NUM_ROUNDS, "upload_dtype": "int8"},
    "encoders": {"ecg": {"name": "conv1d", "norm": "batch"}},
    "foundation": {"kind": "tiny", "num_steps": 5},
    "injection": {"num_experts": 2, "rank": 2, "num_epochs": 1},
    "evaluation": {"num_resamples": 20},
}


class Sent(NamedTuple):
    """One message: who, its tensors by group, and its bytes on a wire."""

    round: int
    client: str
    groups: Mapping[str, Params]
    num_bytes: int


class Listening:
    """An exchange that writes down what passes."""

    def __init__(self, inner: ClientExchange, down: list[Sent], up: list[Sent]) -> None:
        self._inner, self._down, self._up = inner, down, up

    @property
    def registered(self) -> Mapping[str, int]:
        return self._inner.registered

    def __call__(self, round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        for client, broadcast in broadcasts.items():
            self._down.append(Sent(round, client, _groups(broadcast), len(broadcast_bytes(broadcast))))
        for client, answer in self._inner(round, broadcasts):
            assert isinstance(answer, Update)
            self._up.append(Sent(round, client, _groups(answer), len(update_bytes(answer))))
            yield client, answer

    def client_state(self, client: str) -> Params:
        return self._inner.client_state(client)

    def forget_after(self, round: int) -> None:
        self._inner.forget_after(round)

    def close(self) -> None:
        self._inner.close()


def _groups(message: Broadcast | Update) -> dict[str, Params]:
    values = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, Mapping) and all(isinstance(part, Tensor) for part in value.values())
    }


def test_what_the_server_learns_by_injection_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, down, up, sums = study_of(STUDY, "test"), list[Sent](), list[Sent](), list[int]()
    aggregate = Composed.aggregate

    def counted(algorithm: Composed, state, updates, federation):  # type: ignore[no-untyped-def]
        sums.append(state.round + 1)
        return aggregate(algorithm, state, updates, federation)

    def connect(study: Study, cohort: Cohort, run: RunFolder) -> ClientExchange:
        return Listening(in_process(study, cohort, run), down, up)

    monkeypatch.setattr(Composed, "aggregate", counted)
    participants = dataclasses.replace(here(), connect=connect)
    run = RunFolder(
        run_study(study, RunPaths(tmp_path, tmp_path / "cache"), Reporter.silent(), participants=participants)
    )
    assert sums == list(range(1, NUM_ROUNDS + 1)), "one aggregation a round"
    assert len(down) == len(up) == NUM_ROUNDS * NUM_CLIENTS

    model = build_model(study)
    params, buffers = set(trainable_params(model)), set(persistent_buffers(model))
    assert {name.partition(".")[0] for name in params} == {"encoders", "heads"}
    for message in down:
        assert set(message.groups["params"]) == params
        assert set(message.groups["buffers"]) == buffers
        assert not message.groups["state"]
    for message in up:
        assert set(message.groups["delta"]) == params
        assert set(message.groups["buffers"]) == buffers
        assert set(message.groups["scales"]) < params
        assert not message.groups["state"]

    checkpoint = Checkpoints(run.root).load()
    assert checkpoint is not None
    own = split(checkpoint[0], ("federated", "injector"))["injector"]
    kinds = ("projector", "router", "lora_A", "lora_B")
    assert all(any(kind in name for name in own) for kind in kinds), "the server has none: a void test"
    assert not any(
        kind in name for message in (*down, *up) for part in message.groups.values() for name in part for kind in kinds
    )

    rounds = run.lines(Round)
    logged = [(line.round, client.client) for line in rounds for client in line.clients]
    assert logged == [(message.round, message.client) for message in up]
    for client, sent, got in zip([c for line in rounds for c in line.clients], up, down, strict=True):
        assert client.bytes_up == num_bytes(*sent.groups.values())
        assert 0 <= sent.num_bytes - client.bytes_up < 300 * sum(map(len, sent.groups.values())) + 2000, "header"
        assert client.bytes_down == num_bytes(*got.groups.values())
        assert client.bytes_up < 0.35 * client.bytes_down
    assert all(0 < line.upload_error < 0.05 for line in rounds)
    assert "the mean update is off by" in (run.root / "report.html").read_text(encoding="utf-8")
