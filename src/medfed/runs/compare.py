"""Run a sweep and compare its cells: prepare once, run every cell × seed, then the tables.

A sweep leaves files in ``runs/<sweep>/``. ``comparison.json`` holds all values, intervals and differences; a benchmark
has ``leaderboard.json`` instead. ``table.md`` holds our numbers, the paper's and those of constants. There are also
``report.html`` and the workers' ``logs/``.

Every run has a process of its own: one that fails, or dies, takes nothing else with it. Workers have one thread each.
Interrupting the command ends them; each has its checkpoints, so the same command goes on. A worker whose parent is gone
ends itself.
"""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from medfed.core.errors import MedfedError, RunError
from medfed.core.processes import Started, end, end_with_parent, how_it_ended, start
from medfed.core.progress import Reporter
from medfed.data.sources import Sources, find_sources
from medfed.evaluation.compare import compare_runs
from medfed.evaluation.leaderboard import leaderboard
from medfed.records.folder import RunFolder
from medfed.report.comparison import comparison_tables, markdown, sentences
from medfed.report.leaderboard import conclusion, leaderboard_markdown, leaderboard_table
from medfed.report.page import write_report
from medfed.runs.baselines import SHARED_SETTINGS
from medfed.runs.context import RunPaths, folder_of, settled
from medfed.runs.pipeline import foundation_of, run_study
from medfed.study.foundation import TinySettings
from medfed.study.study import Study
from medfed.study.sweep import Cell, Plan

TABLE_WIDTH = 160


def run_sweep(plan: Plan, paths: RunPaths, reporter: Reporter, num_workers: int, report: Path | None = None) -> Path:
    """Run all that is not finished, compare, and return the comparison's folder.

    Raises RunError if some cells failed; the others are finished, and the same command tries the failed ones again.
    Raises MedfedError if what all cells need could not be prepared.
    """
    root = paths.runs / plan.name
    pairs = [(cell, seed) for seed in plan.seeds for cell in plan.cells]
    reporter.say(f"{plan.name}: {len(plan.cells)} cells × {len(plan.seeds)} seeds = {len(pairs)} runs")
    folders = prepare([cell.at(seed) for cell, seed in pairs], paths, reporter)
    todo: dict[Path, Job] = {}
    for (cell, seed), folder in zip(pairs, folders, strict=True):
        if not RunFolder(folder).done:
            log = root / "logs" / f"{folder.name}.log"
            todo.setdefault(folder, Job(f"{cell.label}, seed {seed}", cell.at(seed), log))
    if finished := len(set(folders)) - len(todo):
        reporter.say(f"finished before: {finished} of {len(set(folders))}")
    if failed := _run(in_turns(list(todo.values())), paths, reporter, num_workers):
        listed = "".join(f"\n  {outcome.job.label}: {outcome.error}" for outcome in failed)
        what = f"{len(failed)} of {len(todo)} runs failed{listed}"
        raise RunError(what, where=root, hint="fix them, and run it again")
    _compare(plan, pairs, folders, root, reporter)
    if report is not None:
        shutil.copyfile(root / "report.html", report)
    return root


def prepare(studies: Sequence[Study], paths: RunPaths, reporter: Reporter) -> list[Path]:
    """Write twins and pre-train tiny LLMs that the cache lacks, once, and return every study's run folder."""
    sources_by_key: dict[str, Sources] = {}
    trained: set[str] = set()
    folders = []
    for study in studies:
        twins = study.twins.model_dump() if study.twins else None
        folders_of = [study.train, study.partition.model_dump()] if study.partition.scheme == "sites" else None
        key = json.dumps([study.dataset_names, twins, study.twin_sizes, folders_of])
        if key not in sources_by_key:
            sources_by_key[key] = find_sources(study, paths.data_root, paths.cache, reporter)
        folders.append(folder_of(settled(study, paths)[0], paths, sources_by_key[key]))
        llm = study.foundation.model_dump_json()
        if study.job == "inject" and isinstance(study.foundation, TinySettings) and llm not in trained:
            foundation_of(study, paths, reporter)
            trained.add(llm)
    return folders


def in_turns(jobs: Sequence[Job]) -> list[Job]:
    """Order jobs so that neighbours want different baselines, and so do not wait for each other."""
    kinds: dict[str, list[Job]] = {}
    for job in jobs:
        settings = job.study.resolved()
        key = json.dumps([settings["seed"], *(settings.get(name) for name in SHARED_SETTINGS)], sort_keys=True)
        kinds.setdefault(key, []).append(job)
    return [job for turn in zip_longest(*kinds.values()) for job in turn if job is not None]


def _run(jobs: Sequence[Job], paths: RunPaths, reporter: Reporter, num_workers: int) -> list[Outcome]:
    """Run ``jobs`` with a line for each that ends, and return the failed ones."""
    started, failed = time.monotonic(), []
    for number, outcome in enumerate(run_jobs(jobs, paths, num_workers), start=1):
        how = f"failed: {outcome.error}" if outcome.folder is None else str(outcome.folder)
        reporter.say(f"[{number}/{len(jobs)}] {outcome.job.label}: {how} ({time.monotonic() - started:.0f} s)")
        failed += [outcome] if outcome.folder is None else []
    return failed


def _compare(
    plan: Plan, pairs: Sequence[tuple[Cell, int]], folders: Sequence[Path], root: Path, reporter: Reporter
) -> None:
    """Write what compares the runs: a leaderboard of a benchmark, a comparison of injected LLMs over seeds."""
    facts: dict[str, Any] = {"name": plan.name, "description": plan.description, "folders": tuple(map(str, folders))}
    run = RunFolder(root)
    wide = Console(file=reporter.console.file, width=max(reporter.console.width, TABLE_WIDTH))
    if plan.cells[0].study.job == "benchmark":
        places = [cell.values or {"algorithm": cell.study.algorithm.label} for cell, _ in pairs]
        with reporter.phase("rank"):
            board = leaderboard(folders, places, [seed for _, seed in pairs]).model_copy(update=facts)
        run.write(board)
        text, tables, note = leaderboard_markdown(board), [leaderboard_table(board)], conclusion(board)
        write_report(board, root / "report.html", folders)
    else:
        facts |= {"paper": tuple(plan.paper), "cells": {cell.label: dict(cell.values) for cell in plan.cells}}
        labels = [cell.label for cell, _ in pairs]
        with reporter.phase("compare"):
            comparison = compare_runs(folders, labels, pairs=plan.pairs).model_copy(update=facts)
        run.write(comparison)
        text, tables = markdown(comparison), comparison_tables(comparison)
        note = "* gives every patient the same answer. A constant answer has an AUROC of 0.5."
        note = "\n".join([*sentences(comparison), note])
        write_report(comparison, root / "report.html", folders)
    run.write_text("table.md", text)
    wide.print(*tables)
    reporter.say(note)
    reporter.say(f"tables: {root / 'table.md'}\nreport: {root / 'report.html'}")


class Job(NamedTuple):
    """One run: what a progress line calls it, its study and its log file."""

    label: str
    study: Study
    log: Path


class Outcome(NamedTuple):
    """How a job ended: its run folder, or the error."""

    job: Job
    folder: Path | None
    error: str = ""


def run_jobs(jobs: Sequence[Job], paths: RunPaths, num_workers: int) -> Iterator[Outcome]:
    """Run ``jobs``, at most ``num_workers`` at once, and yield each outcome as it comes.

    Closing the iterator, or an exception such as Ctrl-C, ends the workers that are left.
    """
    waiting = list(jobs)
    busy: list[tuple[Job, Started]] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < num_workers:
                job = waiting.pop(0)
                busy.append((job, start(_work, job, paths, name=job.label)))
            ready = wait([started.process.sentinel for _, started in busy])
            for worker in [worker for worker in busy if worker[1].process.sentinel in ready]:
                busy.remove(worker)
                yield _outcome(*worker)
    finally:
        end([started.process for _, started in busy])


def _outcome(job: Job, started: Started) -> Outcome:
    process, pipe = started
    process.join()
    try:
        folder, error = pipe.recv()
    except EOFError:
        step = f"next step: see {job.log}; the same command goes on"
        folder, error = None, f"the worker {how_it_ended(process)}\n  {step}"
    pipe.close()
    return Outcome(job, folder, error)


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
