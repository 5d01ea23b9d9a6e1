"""A leaderboard: which algorithm is best over many tasks and partitions, and which differences mean anything.

A *block* is one task under one partition. In it, algorithms are ranked by the mean over seeds of the task's primary
metric; ties share the mean rank. Over blocks: Friedman's test of whether any algorithm differs, and Nemenyi's critical
difference, the smallest difference of average ranks that is significant (Demšar 2006, §3.2.2). Blocks that share a task
are not independent, so the test errs on the side of finding differences; the report says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from medfed.core.errors import RunError
from medfed.records.folder import RunFolder
from medfed.records.schema import Block, Cost, LeaderboardFile, ProvenanceFile, Rank, ScoreFile, ScoreRow, Standing

LEVEL = 0.05
DEPLOYED = "federated"
"""The algorithm's own model in a run's scores."""


class Entry(NamedTuple):
    """One finished run: its place in the grid, its primary metric by model, and what it cost."""

    block: tuple[str, ...]
    algorithm: str
    seed: int
    values: Mapping[str, ScoreRow]
    cost: Cost | None


def leaderboard(folders: Sequence[Path], places: Sequence[Mapping[str, str]], seeds: Sequence[int]) -> LeaderboardFile:
    """Rank the algorithms of finished benchmark runs.

    ``places`` holds per run the sweep's axis values: the last axis is the algorithm, the others are the block. Raises
    RunError if a run has no primary metric of the algorithm's own model.
    """
    entries = [_entry(*parts) for parts in zip(folders, places, seeds, strict=True)]
    algorithms = tuple(dict.fromkeys(entry.algorithm for entry in entries))
    blocks = [_block(name, entries, algorithms) for name in dict.fromkeys(entry.block for entry in entries)]
    return ranked(blocks, algorithms)


def ranked(blocks: Sequence[Block], algorithms: Sequence[str]) -> LeaderboardFile:
    """Return ``blocks`` with average ranks, Friedman's p, the critical difference, and groups that do not differ.

    Blocks in which an algorithm has no value are left out of the ranks and counted.
    """
    complete = [block for block in blocks if all(block.values[name].mean is not None for name in algorithms)]
    signs = np.array([-1.0 if block.higher_is_better else 1.0 for block in complete])
    values = np.array([[block.values[name].mean for block in complete] for name in algorithms], float)
    ranks = rankdata(signs * values, axis=0).T
    means = dict(zip(algorithms, ranks.mean(0).tolist(), strict=True)) if complete else {}
    p = None
    if len(complete) > 1 and len(algorithms) > 2:
        statistic = float(friedmanchisquare(*ranks.T).pvalue)
        p = statistic if math.isfinite(statistic) else None  # all tied: no statistic
    critical = critical_difference(len(algorithms), len(complete)) if complete and len(algorithms) > 1 else None
    by_block = dict(zip(algorithms, map(tuple, ranks.T.tolist()), strict=True))
    return LeaderboardFile(
        algorithms=tuple(algorithms),
        blocks=tuple(blocks),
        num_blocks=len(complete),
        num_left_out=len(blocks) - len(complete),
        ranks={name: Rank(mean=means.get(name), by_block=by_block[name]) for name in algorithms},
        friedman_p=p,
        critical_difference=critical,
        groups=tuple(map(tuple, groups(means, critical))) if critical is not None else (),
    )


def critical_difference(num_algorithms: int, num_blocks: int, level: float = LEVEL) -> float:
    """Return Nemenyi's critical difference of average ranks: q_α √(k(k+1)/(6N)), q from the studentized range / √2."""
    q = float(studentized_range.ppf(1 - level, num_algorithms, np.inf)) / math.sqrt(2)
    return q * math.sqrt(num_algorithms * (num_algorithms + 1) / (6 * num_blocks))


def groups(means: Mapping[str, float], critical: float) -> list[list[str]]:
    """Return the largest runs of algorithms, best first, whose average ranks lie within ``critical``."""
    order = sorted(means, key=lambda name: (means[name], name))
    runs: list[list[str]] = []
    for start, first in enumerate(order):
        run = [name for name in order[start:] if means[name] - means[first] < critical]
        if len(run) > 1 and not any(set(run) <= set(other) for other in runs):
            runs.append(run)
    return runs


def _entry(folder: Path, place: Mapping[str, str], seed: int) -> Entry:
    run = RunFolder(folder)
    rows = [row for row in run.read(ScoreFile).rows if row.primary]
    task = rows[0].task if rows else ""
    values = {row.model: row for row in rows if row.task == task}
    if DEPLOYED not in values:
        raise RunError("the run has no primary metric", where=folder, hint="compare benchmark runs only")
    *block, algorithm = place.values()
    return Entry(tuple(block), algorithm, seed, values, run.read(ProvenanceFile).cost)


def _block(name: tuple[str, ...], entries: Sequence[Entry], algorithms: Sequence[str]) -> Block:
    here = [entry for entry in entries if entry.block == name]
    bounds = dict.fromkeys(model for entry in here for model in entry.values if model != DEPLOYED)
    first = {entry.seed: entry for entry in reversed(here)}  # bounds are the same for all algorithms of a seed
    by_algorithm = {algorithm: [entry for entry in here if entry.algorithm == algorithm] for algorithm in algorithms}
    facts = here[0].values[DEPLOYED].model_dump(include={"task", "metric", "title", "higher_is_better", "n"})
    return Block(
        name=name,
        **facts,
        values={algorithm: _standing(entries, DEPLOYED) for algorithm, entries in by_algorithm.items()},
        bounds={model: _standing(list(first.values()), model) for model in bounds},
    )


def _standing(entries: Sequence[Entry], model: str) -> Standing:
    """Return mean and standard deviation over seeds (None below two), the worst client, and mean costs."""
    rows = {entry.seed: entry.values[model] for entry in entries if model in entry.values}
    values = [row.value for row in rows.values() if row.value is not None]
    worst = [row.worst for row in rows.values() if row.worst is not None]
    whole = len(values) == len(rows) > 0
    return Standing(
        mean=float(np.mean(values)) if whole else None,
        std=float(np.std(values, ddof=1)) if whole and len(values) > 1 else None,
        worst_client=float(np.mean(worst)) if worst and whole else None,
        seeds={str(seed): row.value for seed, row in rows.items()},
        intervals=tuple((row.ci_low, row.ci_high) for row in rows.values()),
        cost=_mean_cost([entry.cost for entry in entries if entry.cost]) if model == DEPLOYED else None,
    )


def _mean_cost(costs: Sequence[Cost]) -> Cost | None:
    """Return the mean cost; ``upload_error`` counts where weights travel."""
    means = {}
    for name in Cost.model_fields:
        known = [value for cost in costs if (value := getattr(cost, name)) is not None]
        means[name] = float(np.mean(known)) if known else None
    return Cost(**means) if costs else None
