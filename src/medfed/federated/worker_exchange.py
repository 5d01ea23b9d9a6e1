"""Many clients in a few processes on one machine: memory for as many models as there are workers, not as clients.

Clients are dealt in order of their ids, one at a time to whichever worker is free; updates that come early wait their
turn on disk (:func:`medfed.federated.aggregation.in_order`), so the result is that of :class:`InProcessExchange`, bit
for bit. What clients keep between rounds lies in files, so a resumed run may have another number of workers.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from torch import Tensor

from medfed.errors import RunError
from medfed.federated.client import Client
from medfed.federated.exchange import Answer, Trainer, by_id
from medfed.federated.memory import DiskMemory
from medfed.federated.pool import Packed, Pool, Post, Worker, first_with_news
from medfed.federated.spool import write_spool
from medfed.federated.wire import update_of
from medfed.federated.worker import Open, Recipe
from medfed.types import Broadcast, Failure, Update

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
