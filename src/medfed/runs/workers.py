"""Run cells × seeds, each in a process of its own: one that fails, or dies, takes nothing else with it.

Workers have one thread each. They write to a log file and send back one line when they end.
Interrupting the command ends them; each has its checkpoints, so the same command goes on. A worker whose parent is gone
ends itself.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from rich.console import Console

from medfed.core.errors import MedfedError
from medfed.core.processes import Started, end, end_with_parent, how_it_ended, start
from medfed.core.progress import Reporter
from medfed.runs.context import RunPaths
from medfed.runs.pipeline import run_study
from medfed.study.study import Study


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
    started: Started


def run_jobs(jobs: Sequence[Job], paths: RunPaths, num_workers: int) -> Iterator[Outcome]:
    """Run ``jobs``, at most ``num_workers`` at once, and yield each outcome as it comes.

    Closing the iterator, or an exception such as Ctrl-C, ends the workers that are left.
    """
    waiting = list(jobs)
    busy: list[_Worker] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < num_workers:
                busy.append(_started(waiting.pop(0), paths))
            ready = wait([worker.started.process.sentinel for worker in busy])
            for worker in [worker for worker in busy if worker.started.process.sentinel in ready]:
                busy.remove(worker)
                yield _outcome(worker)
    finally:
        end([worker.started.process for worker in busy])


def _started(job: Job, paths: RunPaths) -> _Worker:
    return _Worker(job, start(_work, job, paths, name=job.label))


def _outcome(worker: _Worker) -> Outcome:
    process, pipe = worker.started
    process.join()
    try:
        folder, error = pipe.recv()
    except EOFError:
        folder, error = (
            None,
            (f"the worker {how_it_ended(process)}\n  next step: see {worker.job.log}; the same command goes on"),
        )
    pipe.close()
    return Outcome(worker.job, folder, error)


def _work(job: Job, paths: RunPaths, pipe: Connection) -> None:
    """Run one job in the worker process."""
    end_with_parent()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a", encoding="utf-8") as log:
        try:
            pipe.send((run_study(job.study, paths, Reporter(Console(file=log, width=120))), ""))
        except MedfedError as error:
            pipe.send((None, str(error)))
        except Exception as error:  # a bug in one cell must not stop the others
            log.write(traceback.format_exc())
            pipe.send((None, f"{type(error).__name__}: {error}\n  next step: see {job.log}"))
