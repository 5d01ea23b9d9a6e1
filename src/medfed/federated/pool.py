"""A fixed number of worker processes: started when first needed, replaced when they die, ended together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from multiprocessing.connection import wait

from medfed.federated.wire import broadcast_bytes
from medfed.federated.worker import Open, Receive, Train, work
from medfed.processes import Started, end, how_it_ended, start
from medfed.types import Broadcast


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
