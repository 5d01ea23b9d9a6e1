"""A fixed number of worker processes: started when first needed, replaced when they die, ended together.

What a worker process does: hold one model, train the clients it is told to, one after the other.

The pipe from the exchange brings orders; an answer is a line of JSON, and after it the update as bytes, if there is
one. Orders are our own program's values, sent to a process that it started; tensors travel as
:mod:`medfed.federated.encoding` packs them.

Many clients in a few processes on one machine: memory for as many models as there are workers, not as clients.

Clients are dealt in order of their ids, one at a time to whichever worker is free; updates that come early wait their
turn on disk (:func:`medfed.federated.aggregation.in_order`), so the result is that of :class:`InProcessExchange`, bit
for bit. What clients keep between rounds lies in files, so a resumed run may have another number of workers.
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
from medfed.federated.client_store import read_spool, write_spool
from medfed.federated.exchange import Answer, Trainer, by_id
from medfed.federated.memory import DiskMemory
from medfed.federated.wire import broadcast_bytes, broadcast_of, update_bytes, update_of
from medfed.study.algorithms import AlgorithmSettings
from medfed.study.federation import ClientSettings, UploadDtype
from medfed.tasks.base import Task


class Packed:
    """A broadcast and its bytes, packed once for all workers; ``mark`` tells one from the other."""

    def __init__(self, broadcast: Broadcast) -> None:
        self.broadcast, self.data, self.mark = broadcast, broadcast_bytes(broadcast), object()


class Post:
    """Packs a round's broadcasts; clients that are sent the same one share its bytes."""

    def __init__(self) -> None:
        self._last: Packed | None = None

    def packed(self, broadcast: Broadcast) -> Packed:
        """Return ``broadcast`` packed."""
        if self._last is None or self._last.broadcast is not broadcast:
            self._last = Packed(broadcast)
        return self._last


class Worker:
    """One process, what it has been given, and which client it trains."""

    def __init__(self, started: Started) -> None:
        self.process, self.pipe = started
        self.client = ""
        self._opened: Open | None = None
        self._holds: object = None

    def hand(self, run: Open, packed: Packed, client: str) -> None:
        """Let the worker train ``client``; it is given the run and the broadcast if it has others.

        Raises:
            OSError: the process is gone.
        """
        if self._opened is not run:
            self.pipe.send(run)
            self._opened = run
        if self._holds is not packed.mark:
            self.pipe.send(Receive())
            self.pipe.send_bytes(packed.data)
            self._holds = packed.mark
        self.pipe.send(Train(client))
        self.client = client

    def fate(self) -> str:
        """Say how a process that closed its pipe ended."""
        return how_it_ended(self.process)


class Pool:
    """Worker processes.

    Args:
        size: how many at most.
    """

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


def first_with_news(workers: Sequence[Worker]) -> Worker:
    """Wait until one of ``workers`` has sent something or is gone; of several, return the one that started first."""
    ready = set(wait([worker.pipe for worker in workers]))
    return next(worker for worker in workers if worker.pipe in ready)


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
    algorithm: AlgorithmSettings
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


TRIES = 3
"""Processes that may be gone before they take an order, until the run gives up."""


class WorkerExchange:
    """Clients trained by the processes of a pool.

    A worker that dies fails the client it was training, and another takes its place. A bug at a client is that client's
    failure; its traceback is in the recipe's log.

    Args:
        clients: the hospitals.
        recipe: how a client is trained.
        pool: the processes; closed with the exchange.
        spool: folder for the clients' data, from the first round until the exchange is closed.
    """

    def __init__(self, clients: Iterable[Client], recipe: Recipe, pool: Pool, spool: Path) -> None:
        self._clients, self._recipe, self._pool, self._spool = by_id(clients), recipe, pool, spool
        self._worked = False

    @property
    def registered(self) -> dict[str, int]:
        """Client → training examples, sorted by client."""
        return {name: client.num_examples for name, client in self._clients.items()}

    def __call__(self, round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        """Train the named clients and yield the answers as they come.

        Raises:
            RunError: no worker could get ready.
        """
        waiting, busy, post = deque(sorted(broadcasts)), list[Worker](), Post()

        def deal() -> None:
            while waiting and len(busy) < self._pool.size:
                client = waiting.popleft()
                busy.append(self._handed(client, post.packed(broadcasts[client]), busy))

        self._pool.start(len(waiting))
        try:
            deal()
            while busy:
                worker = first_with_news(busy)
                client, answer = worker.client, self._answer(worker, round)
                if answer is not None:
                    busy.remove(worker)
                    deal()  # first, so that no worker waits for the server's sums
                    yield client, answer
        finally:
            self._pool.end(busy)

    def own(self, client: str) -> dict[str, Tensor]:
        """Return what the algorithm keeps at ``client``."""
        return self._trainer.own(client)

    def forget_after(self, round: int) -> None:
        """Drop what clients kept after ``round``."""
        DiskMemory(self._recipe.memory).forget_after(round)

    def close(self) -> None:
        """End the workers and remove the spool."""
        self._pool.close()
        shutil.rmtree(self._spool, ignore_errors=True)

    @cached_property
    def _run(self) -> Open:
        """What a worker is given first; the data is written now."""
        return Open(self._recipe, self._spool, write_spool(self._spool, self._clients.values()))

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
                fate = worker.fate()
                self._pool.end([worker])
            else:
                return worker
        raise self._cannot_start(fate)

    def _answer(self, worker: Worker, round: int) -> Update | Failure | None:
        """Return what ``worker`` says of its client; None if it says no more than that it is ready."""
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
        fate = worker.fate()
        self._pool.end([worker])
        if not self._worked:
            raise self._cannot_start(fate)
        reason = f"the worker {fate}\n  next step: where memory is short, take fewer --workers"
        return Failure(worker.client, round, "exchange", reason)

    def _cannot_start(self, reason: str) -> RunError:
        return RunError(
            f"a worker could not get ready: {reason}", where=self._spool, hint="run with --workers 1 to see more"
        )
