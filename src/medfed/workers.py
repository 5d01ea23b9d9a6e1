"""Run cells × seeds, each in a process of its own: one that fails, or dies, takes nothing else with it.

Workers are spawned with one thread each. They write their words to a log file and send back one line when they end.
Interrupting the command ends them; each has its checkpoints, so the same command goes on. A worker whose parent is gone
ends itself.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from rich.console import Console

from medfed.errors import MedfedError
from medfed.pipeline import Places, run_study
from medfed.progress import Reporter
from medfed.study import Study

GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Job:
    """One run: what a progress line calls it, its study and its log file."""

    label: str
    study: Study
    log: Path


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its run folder, or the error."""

    job: Job
    folder: Path | None
    error: str = ""


@dataclass
class _Worker:
    job: Job
    process: SpawnProcess
    pipe: Connection


def run_jobs(jobs: Sequence[Job], places: Places, num_workers: int) -> Iterator[Outcome]:
    """Run ``jobs``, at most ``num_workers`` at once, and yield each outcome as it comes.

    Closing the iterator, or an exception such as Ctrl-C, ends the workers that are left.
    """
    waiting = list(jobs)
    busy: list[_Worker] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < num_workers:
                busy.append(_started(waiting.pop(0), places))
            ready = wait([worker.process.sentinel for worker in busy])
            for worker in [worker for worker in busy if worker.process.sentinel in ready]:
                busy.remove(worker)
                yield _outcome(worker)
    finally:
        _end(busy)


def _started(job: Job, places: Places) -> _Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, places, theirs), name=job.label)
    # A worker inherits that Ctrl-C is ignored: this process ends it in good order.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    theirs.close()
    return _Worker(job, process, ours)


def _outcome(worker: _Worker) -> Outcome:
    worker.process.join()
    try:
        folder, error = worker.pipe.recv()
    except EOFError:
        code = worker.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        folder, error = None, f"the worker {how}\n  next step: see {worker.job.log}; the same command goes on"
    worker.pipe.close()
    return Outcome(worker.job, folder, error)


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(GRACE_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _work(job: Job, places: Places, pipe: Connection) -> None:
    """Run one job in the worker process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a", encoding="utf-8") as log:
        try:
            pipe.send((run_study(job.study, places, Reporter(Console(file=log, width=120))), ""))
        except MedfedError as error:
            pipe.send((None, str(error)))
        except Exception as error:  # a bug in one cell must not stop the others
            log.write(traceback.format_exc())
            pipe.send((None, f"{type(error).__name__}: {error}\n  next step: see {job.log}"))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
