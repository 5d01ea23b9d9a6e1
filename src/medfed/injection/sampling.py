"""The order of the public examples in one injection epoch.

Tasks are mixed within a batch. Balanced over tasks, every task gives the same number of examples to an epoch, and every
batch as nearly so as its size allows; balanced over classes, so does every class within its task. The smaller ones
repeat, each in fresh permutations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Draw(NamedTuple):
    """One example: its task and its position in the task's set."""

    task: str
    position: int


def epoch_order(
    targets: Mapping[str, Int[np.ndarray, " example"]],
    rng: np.random.Generator,
    *,
    balance_tasks: bool = True,
    balance_classes: bool = True,
) -> list[Draw]:
    """Return the epoch's examples in order.

    Args:
        targets: class index of every example, by task.
        rng: the source of chance.
        balance_tasks: give every task the same share.
        balance_classes: give every class of a task the same share.
    """
    total = sum(map(len, targets.values()))
    share = math.ceil(total / len(targets))
    streams = {
        task: _stream(values if balance_classes else np.zeros_like(values), rng) for task, values in targets.items()
    }
    if balance_tasks:
        return [Draw(task, next(streams[task])) for _ in range(share) for task in targets]
    draws = [Draw(task, next(streams[task])) for task, values in targets.items() for _ in range(len(values))]
    return [draws[int(i)] for i in rng.permutation(total)]


def _stream(classes: Int[np.ndarray, " example"], rng: np.random.Generator) -> Iterator[int]:
    """Yield positions without end, the classes in turn."""
    cycles = [_cycle(np.flatnonzero(classes == value), rng) for value in np.unique(classes)]
    while True:
        for index in rng.permutation(len(cycles)):
            yield next(cycles[index])


def _cycle(positions: Int[np.ndarray, " position"], rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from (int(position) for position in rng.permutation(positions))
