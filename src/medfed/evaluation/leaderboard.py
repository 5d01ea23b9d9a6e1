"""A leaderboard: which algorithm is best over many tasks and partitions, and which differences mean anything.

A *block* is one task under one partition; within it, algorithms are ranked by the mean over seeds of the task's primary
metric (ties share the mean rank). Over blocks: Friedman's test of whether any algorithm differs, and Nemenyi's critical
difference, the smallest difference of average ranks that is significant (Demšar 2006, §3.2.2). Blocks that share a task
are not independent, so the test errs on the side of finding differences; the report says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from medfed.core.errors import RunError
from medfed.runs.folder import RunDir

LEVEL = 0.05
DEPLOYED = "federated"
"""The algorithm's own model in a run's scores."""


@dataclass(frozen=True)
class Entry:
    """One finished run: its place in the grid, its primary metric by model, and what it cost."""

    block: tuple[str, ...]
    algorithm: str
    seed: int
    metric: Mapping[str, Any]
    values: Mapping[str, Mapping[str, Any]]
    cost: Mapping[str, float | int]


def leaderboard(folders: Sequence[Path], places: Sequence[Mapping[str, str]], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the content of ``leaderboard.json``.

    Args:
        folders: finished benchmark runs.
        places: per run the sweep's axis values; the last axis is the algorithm, the others are the block.
        seeds: per run its seed.

    Raises:
        RunError: a run has no primary metric.
    """
    entries = [_entry(*parts) for parts in zip(folders, places, seeds, strict=True)]
    algorithms = list(dict.fromkeys(entry.algorithm for entry in entries))
    blocks = [_block(name, entries, algorithms) for name in dict.fromkeys(entry.block for entry in entries)]
    return {"algorithms": algorithms, "blocks": blocks, **ranking(blocks, algorithms)}


def ranking(blocks: Sequence[Mapping[str, Any]], algorithms: Sequence[str]) -> dict[str, Any]:
    """Return average ranks, Friedman's p, the critical difference, and groups that do not differ.

    Blocks in which an algorithm has no value are left out of the ranks and counted.
    """
    complete = [block for block in blocks if all(block["values"][name]["mean"] is not None for name in algorithms)]
    ranks = np.array([_ranks(block, algorithms) for block in complete]).reshape(len(complete), len(algorithms))
    means = dict(zip(algorithms, ranks.mean(0).tolist(), strict=True)) if complete else {}
    p = None
    if len(complete) > 1 and len(algorithms) > 2:
        found = float(friedmanchisquare(*ranks.T).pvalue)
        p = found if math.isfinite(found) else None  # all tied: no statistic
    critical = critical_difference(len(algorithms), len(complete)) if complete and len(algorithms) > 1 else None
    return {
        "num_blocks": len(complete),
        "num_left_out": len(blocks) - len(complete),
        "ranks": {
            name: {"mean": means.get(name), "by_block": ranks[:, column].tolist()}
            for column, name in enumerate(algorithms)
        },
        "friedman_p": p,
        "critical_difference": critical,
        "groups": groups(means, critical) if critical is not None else [],
    }


def critical_difference(num_algorithms: int, num_blocks: int, level: float = LEVEL) -> float:
    """Return Nemenyi's critical difference of average ranks: q_α √(k(k+1)/(6N)), q from the studentized range / √2."""
    q = float(studentized_range.ppf(1 - level, num_algorithms, np.inf)) / math.sqrt(2)
    return q * math.sqrt(num_algorithms * (num_algorithms + 1) / (6 * num_blocks))


def groups(means: Mapping[str, float], critical: float) -> list[list[str]]:
    """Return the largest runs of algorithms, best first, whose average ranks lie within ``critical``."""
    order = sorted(means, key=lambda name: (means[name], name))
    found: list[list[str]] = []
    for start, first in enumerate(order):
        run = [name for name in order[start:] if means[name] - means[first] < critical]
        if len(run) > 1 and not any(set(run) <= set(other) for other in found):
            found.append(run)
    return found


def _entry(folder: Path, place: Mapping[str, str], seed: int) -> Entry:
    run = RunDir(folder)
    rows = [row for row in run.read_json("scores.json")["rows"] if row["primary"]]
    if not rows:
        raise RunError("the run has no primary metric", where=folder, hint="compare benchmark runs only")
    *block, algorithm = place.values()
    task = rows[0]["task"]
    values = {row["model"]: row for row in rows if row["task"] == task}
    return Entry(tuple(block), algorithm, seed, values[DEPLOYED], values, run.read_json("provenance.json")["cost"])


def _block(name: tuple[str, ...], entries: Sequence[Entry], algorithms: Sequence[str]) -> dict[str, Any]:
    here = [entry for entry in entries if entry.block == name]
    bounds = dict.fromkeys(model for entry in here for model in entry.values if model != DEPLOYED)
    first = {entry.seed: entry for entry in reversed(here)}  # bounds are the same for all algorithms of a seed
    return {
        "name": list(name),
        "task": here[0].metric["task"],
        "metric": here[0].metric["metric"],
        "title": here[0].metric["title"],
        "higher_is_better": here[0].metric["higher_is_better"],
        "n": here[0].metric["n"],
        "values": {
            algorithm: _over_seeds([entry for entry in here if entry.algorithm == algorithm], DEPLOYED)
            for algorithm in algorithms
        },
        "bounds": {model: _over_seeds(list(first.values()), model) for model in bounds},
    }


def _over_seeds(entries: Sequence[Entry], model: str) -> dict[str, Any]:
    """Return mean and standard deviation over seeds (None below two), the worst client, and mean costs."""
    rows = [entry.values[model] for entry in entries if model in entry.values]
    values = [row["value"] for row in rows if row["value"] is not None]
    worst = [row["worst"] for row in rows if row["worst"] is not None]
    costs = {
        key: float(np.mean([entry.cost[key] for entry in entries])) for key in (entries[0].cost if entries else {})
    }
    whole = len(values) == len(rows) > 0
    return {
        "mean": float(np.mean(values)) if whole else None,
        "std": float(np.std(values, ddof=1)) if whole and len(values) > 1 else None,
        "worst_client": float(np.mean(worst)) if worst and whole else None,
        "seeds": {str(entry.seed): entry.values[model]["value"] for entry in entries if model in entry.values},
        "intervals": [[row["ci_low"], row["ci_high"]] for row in rows],
        **(costs if model == DEPLOYED else {}),
    }


def _ranks(block: Mapping[str, Any], algorithms: Sequence[str]) -> list[float]:
    values = np.array([block["values"][name]["mean"] for name in algorithms])
    ranks: list[float] = rankdata(-values if block["higher_is_better"] else values).tolist()
    return ranks
