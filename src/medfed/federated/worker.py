"""What a worker process does: hold one model, train the clients it is told to, one after the other.

The pipe from the exchange brings orders; an answer is a line of JSON, and after it the update as bytes, if there is
one. Orders are our own program's values, sent to a process that it started; tensors travel as
:mod:`medfed.federated.wire` packs them.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from medfed.federated.algorithms.base import Algorithm
from medfed.federated.client import Client, ClientSettings
from medfed.federated.compression import UploadDtype
from medfed.federated.exchange import Trainer
from medfed.federated.memory import DiskMemory
from medfed.federated.spool import read_spool
from medfed.federated.wire import broadcast_of, update_bytes
from medfed.processes import end_with_parent
from medfed.tasks.base import Task
from medfed.types import Broadcast, Failure


@dataclass(frozen=True)
class Recipe:
    """What a process needs to train clients of one run, besides their data. It must be picklable.

    Attributes:
        build: returns the model with its initial weights; an importable function, or a ``partial`` of one.
        algorithm: the federated algorithm.
        settings: how clients train.
        seed: the run's seed.
        memory: folder of what clients keep between rounds.
        log: where a worker writes the traceback of a bug.
        upload_dtype: how changes of the weights travel.
    """

    build: Callable[[], nn.Module]
    algorithm: Algorithm
    settings: ClientSettings
    seed: int
    memory: Path
    log: Path
    upload_dtype: UploadDtype = "float32"

    def trainer(self) -> Trainer:
        """Build the model and what trains it."""
        memory = DiskMemory(self.memory)
        return Trainer(self.build(), self.algorithm, self.settings, self.seed, memory, self.upload_dtype)


class Open(NamedTuple):
    """Order: get ready for a run."""

    recipe: Recipe
    spool: Path
    tasks: Mapping[str, Task]


class Receive(NamedTuple):
    """Order: take the broadcast that follows as bytes."""


class Train(NamedTuple):
    """Order: train this client on the last broadcast."""

    client: str


Order = Open | Receive | Train


def work(pipe: Connection) -> None:
    """Carry out orders until the pipe is closed or the parent is gone."""
    end_with_parent()
    torch.set_num_threads(1)
    bench: _Bench | None = None
    broadcast: Broadcast | None = None
    while True:
        try:
            order: Order = pipe.recv()
        except EOFError:
            return
        match order:
            case Open():
                bench = _opened(order, pipe)
            case Receive():
                broadcast = broadcast_of(pipe.recv_bytes())
            case Train(client) if bench is not None and broadcast is not None:
                bench.train(client, broadcast)


def _opened(order: Open, pipe: Connection) -> _Bench:
    try:
        bench = _Bench(order, pipe)
    except Exception as error:
        reason = _written(error, order.recipe.log, "getting ready")
        pipe.send_bytes(json.dumps({"broken": reason}).encode())
        raise SystemExit(1) from error
    pipe.send_bytes(json.dumps({"ready": True}).encode())
    return bench


class _Bench:
    """Model, clients' data and memory of one run."""

    def __init__(self, order: Open, pipe: Connection) -> None:
        self._clients: Mapping[str, Client] = read_spool(order.spool, order.tasks)
        self._trainer, self._log, self._pipe = order.recipe.trainer(), order.recipe.log, pipe

    def train(self, client: str, broadcast: Broadcast) -> None:
        """Train ``client`` and send the answer."""
        try:
            answer = self._trainer.train(self._clients[client], broadcast)
        except Exception as error:  # a bug at one client must not stop the others; it is told, and written down
            reason = _written(error, self._log, f"client {client!r}, round {broadcast.round}")
            answer = Failure(client, broadcast.round, "train", reason)
        if isinstance(answer, Failure):
            self._pipe.send_bytes(json.dumps({"failure": vars(answer)}).encode())
        else:
            self._pipe.send_bytes(json.dumps({"update": client}).encode())
            self._pipe.send_bytes(update_bytes(answer))


def _written(error: Exception, log: Path, when: str) -> str:
    """Append the traceback to ``log`` and return the error in a line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"--- {when}\n{traceback.format_exc()}")
    return f"{type(error).__name__}: {error}\n  next step: see {log}"
