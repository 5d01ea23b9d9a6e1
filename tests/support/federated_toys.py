"""Small federations in memory: quadratics with closed forms, and a two-task, two-modality classification."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from medfed.core.errors import StudyError
from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Batch, Broadcast, Update
from medfed.datasets.base import Card
from medfed.datasets.decoded import Decoded
from medfed.federated.algorithm import Federation
from medfed.federated.client import Client
from medfed.federated.exchange import Answer, InProcessExchange, Trainer
from medfed.federated.rounds import RoundResult, initial_state, run_rounds
from medfed.federated.state import FederatedState, Weights
from medfed.modalities.base import Modality, Moments
from medfed.models.base import Encoder
from medfed.models.multimodal import MultimodalModel
from medfed.study.algorithms import AlgorithmSettings
from medfed.study.federation import ClientSettings, RoundSettings, UploadDtype
from medfed.study.parts import EncoderSpec
from medfed.tasks.base import ClosedTask, Task, TaskSet
from medfed.tasks.classification import Classification

CARD = Card(title="toy", version="1", licence="none", access="none", citation="none")
WORDS = {"question": "?", "task_description": "?", "modality_description": "?"}


def decoded(
    samples: Mapping[str, np.ndarray], target: np.ndarray, present: Mapping[str, np.ndarray] | None = None
) -> Decoded:
    size = len(target)
    names = [f"e{number}" for number in range(size)]
    index = pl.DataFrame({"example": names, "patient": names, "label": target.astype(np.int8)})
    present = present or {name: np.ones(size, bool) for name in samples}
    return Decoded("toy", CARD, index, samples, present)


# --- quadratics: client i has ½ Σ_d a_id (w_d − b_id)² ---


class Quadratic(ClosedTask):
    """Half a squared distance with curvature ``a`` to ``b``; a sample is [a, b]."""

    kind: ClassVar[str] = "quadratic"
    answers: tuple[str, ...] = ()

    def head(self, dim: int) -> nn.Module:
        return nn.Identity()

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        curvature, centre = batch.inputs["point"].chunk(2, -1)
        return 0.5 * (curvature * (outputs - centre).square()).sum(-1).mean()

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs


class Point(nn.Module):
    """A model that is one float64 vector ``w``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(dim, dtype=torch.float64))

    def forward(self, task: Task, batch: Batch) -> Tensor:
        return self.w


def quadratic_client(name: str, curvature: list[float], centre: list[float], num_examples: int = 1) -> Client:
    task = Quadratic(name="q", title="q", dataset="toy", target="label", modalities=("point",), **WORDS)
    samples = {"point": np.tile(np.array([*curvature, *centre], np.float64), (num_examples, 1))}
    data = decoded(samples, np.zeros(num_examples))
    return Client(name, {"q": TaskSet(task, data, np.arange(num_examples))})


# --- classification: task x reads modality a; task y reads a and b ---


class Vector(Modality):
    units: ClassVar[str] = "none"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (5,)

    @property
    def num_channels(self) -> int:
        return 1

    def prepare(self, raw: np.ndarray) -> np.ndarray:
        return raw

    def moments(self, samples: np.ndarray) -> Moments:
        return Moments.zero(1)

    def normalise(self, samples: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        return samples


class VectorSpec(EncoderSpec):
    name: ClassVar[str] = "vector"
    dim: int = 4

    def build(self, modality: Modality) -> Encoder:
        return VectorEncoder(self.dim)


class VectorEncoder(Encoder):
    """Linear, BatchNorm, dropout: buffers and randomness, in the smallest form."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(nn.Linear(5, dim, bias=False), nn.BatchNorm1d(dim), nn.Tanh(), nn.Dropout(0.1))

    def forward(self, samples: Tensor) -> Tensor:
        return self.layers(samples).unsqueeze(1)


TASK_X = Classification(name="x", title="x", dataset="toy", target="label", modalities=("a",), **WORDS)
TASK_Y = Classification(name="y", title="y", dataset="toy", target="label", modalities=("a", "b"), **WORDS)


def small_model() -> MultimodalModel:
    modalities = {name: Vector(name=name) for name in "ab"}
    with torch_seeded("small model"):
        return MultimodalModel(dict.fromkeys("ab", VectorSpec()), modalities, (TASK_X, TASK_Y))


def task_set(task: Task, num_examples: int, seed: int, absent: str = "") -> TaskSet:
    """Examples of ``task``; of the modality ``absent`` there is none."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 2, num_examples)
    samples = {
        name: (rng.normal(size=(num_examples, 5)) + target[:, None]).astype(np.float32) * (name != absent)
        for name in task.modalities
    }
    present = {name: np.full(num_examples, name != absent) for name in task.modalities}
    return TaskSet(task, decoded(samples, target, present), np.arange(num_examples))


def small_public() -> dict[str, TaskSet]:
    """The server's public examples, which clients are given as well."""
    return {"x": task_set(TASK_X, 37, 7), "y": task_set(TASK_Y, 35, 8)}


def small_clients() -> list[Client]:
    """Four hospitals: h0 has all; h1 only task x; h2 only task y; h3 both, but no modality b."""
    public = small_public()
    return [
        Client("h0", {"x": task_set(TASK_X, 17, 1), "y": task_set(TASK_Y, 9, 2)}, public),
        Client("h1", {"x": task_set(TASK_X, 12, 3)}, public),
        Client("h2", {"y": task_set(TASK_Y, 20, 4)}, public),
        Client("h3", {"x": task_set(TASK_X, 8, 5), "y": task_set(TASK_Y, 11, 6, absent="b")}, public),
    ]


def small_federation(exchange: InProcessExchange, seed: int = 0) -> Federation:
    """Return what the server knows, with a model and public examples of its own."""
    return Federation(exchange.registered, seed, small_model(), small_public())


SMALL = ClientSettings(optimizer="sgd", lr=0.1, momentum=0.5, batch_size=8)


PLAINER: dict[str, object] = {
    "max_grad_norm": None,
    "weight_decay": 0.0,
    "momentum": 0.0,
    "reset_optimizer": True,
    "optimizer": "sgd",
}
"""What may be taken from client settings until an algorithm accepts them."""


def allowed(algorithm: AlgorithmSettings, settings: ClientSettings = SMALL) -> ClientSettings:
    """Return ``settings`` with as little taken from them as ``algorithm.check`` lets pass."""
    for size in range(len(PLAINER) + 1):
        for fields in combinations(PLAINER, size):
            plainer = settings.model_copy(update={name: PLAINER[name] for name in fields})
            try:
                algorithm.check(plainer)
            except StudyError:
                continue
            return plainer
    raise AssertionError(f"{algorithm!r} accepts no client settings, not even plain SGD")


def states(exchange: InProcessExchange) -> dict[str, dict[str, Tensor]]:
    """Return the newest state of every client that has trained, sorted by client."""
    kept = {name: exchange.trainer.memory.before(name, sys.maxsize) for name in exchange.registered}
    return {name: state for name, state in kept.items() if state is not None}


class Meddler:
    """An exchange between the loop and an in-process one: it may replace, drop, repeat or reorder the answers."""

    def __init__(self, inner: InProcessExchange, meddle: Callable[[list[Answer]], list[Answer]]) -> None:
        self._inner, self._meddle = inner, meddle

    def __call__(self, round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        yield from self._meddle(list(self._inner(round, broadcasts)))


def small_exchange(
    algorithm: AlgorithmSettings, settings: ClientSettings = SMALL, seed: int = 0, upload_dtype: UploadDtype = "float32"
) -> InProcessExchange:
    return InProcessExchange(
        small_clients(), Trainer(small_model(), algorithm, settings, seed, upload_dtype=upload_dtype)
    )


def run(
    algorithm: AlgorithmSettings,
    num_rounds: int = 2,
    settings: ClientSettings = SMALL,
    meddle: Callable[[list[Answer]], list[Answer]] = lambda answers: answers,
    rounds: RoundSettings | None = None,
    seed: int = 0,
) -> list[RoundResult]:
    """Run the small federation, with plainer client settings where the algorithm refuses ``settings``."""
    return run_and_deploy(algorithm, num_rounds, settings, meddle, rounds, seed)[0]


def run_and_deploy(
    algorithm: AlgorithmSettings,
    num_rounds: int = 2,
    settings: ClientSettings = SMALL,
    meddle: Callable[[list[Answer]], list[Answer]] = lambda answers: answers,
    rounds: RoundSettings | None = None,
    seed: int = 0,
) -> tuple[list[RoundResult], dict[str, Weights]]:
    """Return what :func:`run` does, and the model that each client ends with."""
    rounds = (rounds or RoundSettings()).model_copy(update={"num_rounds": num_rounds})
    exchange = small_exchange(algorithm, allowed(algorithm, settings), seed, rounds.upload_dtype)
    federation = small_federation(exchange, seed)
    state = initial_state(small_model(), algorithm)
    results = list(run_rounds(state, Meddler(exchange, meddle), algorithm, federation, rounds))
    weights = results[-1].state.weights
    deploy = algorithm.build().deployed
    return results, {name: deploy(weights, exchange.client_state(name)) for name in exchange.registered}


def converge(
    algorithm: AlgorithmSettings, clients: list[Client], settings: ClientSettings, num_rounds: int, dim: int
) -> FederatedState:
    """Run a federation of quadratics."""
    return converge_and_deploy(algorithm, clients, settings, num_rounds, dim)[0]


def converge_and_deploy(
    algorithm: AlgorithmSettings, clients: list[Client], settings: ClientSettings, num_rounds: int, dim: int
) -> tuple[FederatedState, dict[str, Weights]]:
    """Run a federation of quadratics; return the server's end and the model that each client ends with."""
    model = Point(dim)
    exchange = InProcessExchange(clients, Trainer(model, algorithm, settings, 0))
    federation = Federation(exchange.registered, 0)
    state = initial_state(model, algorithm)
    for result in run_rounds(state, exchange, algorithm, federation, RoundSettings(num_rounds=num_rounds)):
        state = result.state
    deploy = algorithm.build().deployed
    return state, {client.id: deploy(state.weights, exchange.client_state(client.id)) for client in clients}


def changed(answers: list[Answer], client: str, **fields: object) -> list[Answer]:
    """Replace fields of one client's update."""
    return [
        (name, replace(answer, **fields) if name == client and isinstance(answer, Update) else answer)
        for name, answer in answers
    ]
