"""Worker processes: many clients in a few processes on one machine, with memory for as many models as workers.

A worker holds one model and trains the clients it is given, one after the other. Workers start when first needed, are
replaced when they die, and end together. The pipe to one carries orders, which are our own program's values. An answer
is a line of JSON, and after it the update as bytes (:mod:`medfed.federated.wire`), if there is one.

Clients are dealt in order of their ids, one at a time to whichever worker is free. Updates that come early wait their
turn on disk (:func:`medfed.federated.aggregation.in_order`). So the result is that of :class:`InProcessExchange`, bit
for bit. The tensors that clients keep between rounds lie in files, so a resumed run may have another number of workers.
"""

from __future__ import annotations

import json
import shutil
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medfed.core.errors import RunError
from medfed.core.processes import Started, end, end_with_parent, how_it_ended, start
from medfed.core.types import Broadcast, Failure, Update
from medfed.federated.client import Client
from medfed.federated.client_store import read_store, write_store
from medfed.federated.exchange import Answer, Trainer, by_id
from medfed.federated.memory import DiskMemory
from medfed.federated.wire import broadcast_bytes, broadcast_of, update_bytes, update_of
from medfed.study.algorithms import AlgorithmSettings
from medfed.study.federation import ClientSettings, UploadDtype
from medfed.tasks.base import Task


class Packed:
    """A broadcast and its bytes, packed once for all clients that are sent it; ``mark`` tells one from the other."""

    def __init__(self, broadcast: Broadcast) -> None:
        self.broadcast, self.data, self.mark = broadcast, broadcast_bytes(broadcast), object()


class Worker:
    """One process, what it has been given, and which client it trains."""

    def __init__(self, started: Started) -> None:
        self.process, self.pipe = started
        self.client = ""
        self._opened: Open | None = None
        self._holds: object = None

    def hand(self, run: Open, packed: Packed, client: str) -> None:
        """Let the worker train ``client``, given what it lacks of run and broadcast; raise OSError if it is gone."""
        if self._opened is not run:
            self.pipe.send(run)
            self._opened = run
        receives = self._holds is not packed.mark
        self.pipe.send(Train(client, receives))
        if receives:
            self.pipe.send_bytes(packed.data)
            self._holds = packed.mark
        self.client = client


class Pool:
    """At most ``size`` worker processes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.workers: list[Worker] = []

    def start(self, count: int) -> None:
        """Have ``count`` workers, but at most ``size``; they start side by side."""
        while len(self.workers) < min(count, self.size):
            self.workers.append(Worker(start(work, name=f"medfed-worker-{len(self.workers)}", daemon=True)))

    def free(self, busy: Sequence[Worker]) -> Worker:
        """Return a worker that is not ``busy``; one that died is replaced."""
        self.start(len(busy) + 1)
        return next(worker for worker in self.workers if worker not in busy)

    def end(self, workers: Collection[Worker]) -> None:
        """End ``workers``."""
        gone = list(workers)
        end([worker.process for worker in gone])
        for worker in gone:
            worker.pipe.close()
        self.workers = [worker for worker in self.workers if worker not in gone]

    def close(self) -> None:
        """End all."""
        self.end(self.workers)


@dataclass(frozen=True)
class Recipe:
    """All that a process needs to train clients of one run, but their data. It must be picklable."""

    # returns the model with its initial weights; an importable function, or a `partial` of one
    build: Callable[[], nn.Module]
    algorithm: AlgorithmSettings
    settings: ClientSettings
    seed: int  # the run's seed
    memory: Path  # folder of what clients keep between rounds
    log: Path  # where a worker writes the traceback of a bug
    upload_dtype: UploadDtype = "float32"  # how changes of the weights travel

    def trainer(self) -> Trainer:
        """Build the model and what trains it."""
        memory = DiskMemory(self.memory)
        return Trainer(self.build(), self.algorithm, self.settings, self.seed, memory, self.upload_dtype)


class Open(NamedTuple):
    """Order: get ready for a run."""

    recipe: Recipe
    store: Path
    tasks: Mapping[str, Task]


class Train(NamedTuple):
    """Order: train this client on the last broadcast, which follows as bytes if ``receives``."""

    client: str
    receives: bool


def work(pipe: Connection) -> None:
    """Carry out orders until the pipe is closed or the parent is gone."""
    end_with_parent()
    torch.set_num_threads(1)
    while True:
        try:
            order: Open | Train = pipe.recv()
        except EOFError:
            return
        if isinstance(order, Open):
            recipe, clients, trainer = order.recipe, *_ready(order, pipe)
            continue
        if order.receives:
            broadcast = broadcast_of(pipe.recv_bytes())
        try:
            answer = trainer.train(clients[order.client], broadcast)
        except Exception as error:  # a bug at one client must not stop the others; it is reported, and written down
            reason = _written(error, recipe.log, f"client {order.client!r}, round {broadcast.round}")
            answer = Failure(order.client, broadcast.round, "train", reason)
        if isinstance(answer, Failure):
            _send(pipe, failure=vars(answer))
        else:
            _send(pipe, update=order.client)
            pipe.send_bytes(update_bytes(answer))


def _ready(order: Open, pipe: Connection) -> tuple[Mapping[str, Client], Trainer]:
    """Return the clients of a run and what trains them; a process that cannot get ready ends."""
    try:
        ready = read_store(order.store, order.tasks), order.recipe.trainer()
    except Exception as error:
        _send(pipe, broken=_written(error, order.recipe.log, "getting ready"))
        raise SystemExit(1) from error
    _send(pipe, ready=True)
    return ready


def _send(pipe: Connection, **facts: object) -> None:
    pipe.send_bytes(json.dumps(facts).encode())


def _written(error: Exception, log: Path, when: str) -> str:
    """Append the traceback to ``log`` and return the error in a line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"--- {when}\n{traceback.format_exc()}")
    return f"{type(error).__name__}: {error}\n  next step: see {log}"


TRIES = 3
"""Processes that may be gone before they take an order, until the run gives up."""


class WorkerExchange:
    """Clients trained by the processes of a pool, which is closed with the exchange.

    A worker that dies fails the client it was training, and another takes its place. A bug at a client is that client's
    failure; its traceback is in the recipe's log. The clients' data lies in ``store`` from the first round to the end.
    """

    def __init__(self, clients: Iterable[Client], recipe: Recipe, pool: Pool, store: Path) -> None:
        self._clients, self._recipe, self._pool, self._store = by_id(clients), recipe, pool, store
        self._worked = False

    @property
    def registered(self) -> dict[str, int]:
        """Client → training examples, sorted by client."""
        return {name: client.num_examples for name, client in self._clients.items()}

    def __call__(self, round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        """Train the named clients and yield the answers as they come. Raises RunError if no worker could get ready."""
        waiting, busy = deque(sorted(broadcasts)), list[Worker]()
        packed: Packed | None = None

        def deal() -> None:
            nonlocal packed
            while waiting and len(busy) < self._pool.size:
                client = waiting.popleft()
                if packed is None or packed.broadcast is not broadcasts[client]:
                    packed = Packed(broadcasts[client])
                busy.append(self._handed(client, packed, busy))

        self._pool.start(len(waiting))
        try:
            deal()
            while busy:
                ready = set(wait([worker.pipe for worker in busy]))
                worker = next(worker for worker in busy if worker.pipe in ready)
                client, answer = worker.client, self._answer(worker, round)
                if answer is not None:
                    busy.remove(worker)
                    deal()  # first, so that no worker waits for the server's sums
                    yield client, answer
        finally:
            self._pool.end(busy)

    def client_state(self, client: str) -> dict[str, Tensor]:
        """Return what the algorithm keeps at ``client``."""
        return self._trainer.client_state(client)

    def forget_after(self, round: int) -> None:
        """Drop what clients kept after ``round``."""
        DiskMemory(self._recipe.memory).forget_after(round)

    def close(self) -> None:
        """End the workers and remove the client store."""
        self._pool.close()
        shutil.rmtree(self._store, ignore_errors=True)

    @cached_property
    def _run(self) -> Open:
        """The first order to a worker; the data is written now."""
        return Open(self._recipe, self._store, write_store(self._store, self._clients.values()))

    @cached_property
    def _trainer(self) -> Trainer:
        return self._recipe.trainer()

    def _handed(self, client: str, packed: Packed, busy: list[Worker]) -> Worker:
        """Return a free worker, with ``client`` in its hands."""
        for _ in range(TRIES):
            worker = self._pool.free(busy)
            try:
                worker.hand(self._run, packed, client)
            except OSError:
                fate = how_it_ended(worker.process)
                self._pool.end([worker])
            else:
                return worker
        raise self._cannot_start(fate)

    def _answer(self, worker: Worker, round: int) -> Update | Failure | None:
        """Return the answer of ``worker`` for its client; None where it is ready and no more."""
        try:
            facts = json.loads(worker.pipe.recv_bytes())
            if "update" in facts:
                return update_of(worker.pipe.recv_bytes())
        except (EOFError, OSError):
            return self._lost(worker, round)
        if "broken" in facts:
            raise self._cannot_start(facts["broken"])
        if "ready" in facts:
            self._worked = True
            return None
        return Failure(**facts["failure"])

    def _lost(self, worker: Worker, round: int) -> Failure:
        fate = how_it_ended(worker.process)
        self._pool.end([worker])
        if not self._worked:
            raise self._cannot_start(fate)
        reason = f"the worker {fate}\n  next step: where memory is short, take fewer --workers"
        return Failure(worker.client, round, "exchange", reason)

    def _cannot_start(self, reason: str) -> RunError:
        what = f"a worker could not get ready: {reason}"
        return RunError(what, where=self._store, hint="run with --workers 1 to see more")
