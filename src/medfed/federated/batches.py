"""Which examples a local step sees: one mini-batch of every task the client has (FedKIM Eq. 1).

An epoch is as many steps as the largest task has mini-batches; smaller tasks go on with fresh permutations. A last
mini-batch of one example joins the one before it, because BatchNorm has no spread to divide by there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, count, islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from medfed.core.rng import Key, numpy_rng
from medfed.core.types import Batch
from medfed.study.federation import ClientSettings
from medfed.tasks.base import Task, TaskSet, trainable


class TaskBatch(NamedTuple):
    """A mini-batch of one task and its weight in the step's loss (Eq. 1: the mean over tasks)."""

    task: Task
    batch: Batch
    weight: float


def num_batches(num_examples: int, size: int) -> int:
    """Mini-batches in one pass over ``num_examples``."""
    full, rest = divmod(num_examples, size)
    lonely = rest == 1 and full > 0
    return full + (rest > 0 and not lonely)


def steps_per_epoch(tasks: Mapping[str, TaskSet], size: int) -> int:
    """Steps in which the largest task is passed once."""
    return max(num_batches(len(examples), size) for examples in tasks.values())


def num_steps(tasks: Mapping[str, TaskSet], settings: ClientSettings) -> int:
    """Optimizer steps a round."""
    return settings.local_steps or settings.local_epochs * steps_per_epoch(tasks, settings.batch_size)


def steps(tasks: Mapping[str, TaskSet], settings: ClientSettings, *key: Key) -> Iterator[tuple[TaskBatch, ...]]:
    """Yield the mini-batches of every step of a round, drawn from ``key``, the epoch and the task."""
    per_epoch = steps_per_epoch(tasks, settings.batch_size)
    epochs = (_epoch(tasks, settings.batch_size, per_epoch, *key, epoch) for epoch in count())
    return islice(chain.from_iterable(epochs), num_steps(tasks, settings))


def in_order(tasks: Mapping[str, TaskSet], size: int) -> Iterator[TaskBatch]:
    """Yield every example once; the weights make the sum of the losses the client's whole objective (Eq. 1)."""
    for examples in tasks.values():
        for positions in np.split(np.arange(len(examples)), _cuts(len(examples), size)):
            batch = examples.batch(positions)
            yield TaskBatch(examples.task, batch, len(batch) / len(examples) / len(tasks))


def _epoch(tasks: Mapping[str, TaskSet], size: int, length: int, *key: Key) -> Iterator[tuple[TaskBatch, ...]]:
    draws = {
        name: _positions(len(examples), size, numpy_rng(*key, name, "batches")) for name, examples in tasks.items()
    }
    rngs = {name: numpy_rng(*key, name, "augment") for name in tasks}
    for _ in range(length):
        yield tuple(
            TaskBatch(examples.task, _augmented(examples, next(draws[name]), rngs[name]), 1 / len(tasks))
            for name, examples in tasks.items()
        )


def _augmented(examples: TaskSet, positions: Int[np.ndarray, " batch"], rng: np.random.Generator) -> Batch:
    return trainable(examples.task).augment(examples.batch(positions), rng)


def _positions(num_examples: int, size: int, rng: np.random.Generator) -> Iterator[Int[np.ndarray, " batch"]]:
    while True:
        yield from np.split(rng.permutation(num_examples), _cuts(num_examples, size))


def _cuts(num_examples: int, size: int) -> Int[np.ndarray, " cut"]:
    """Where one pass is cut into mini-batches."""
    return np.arange(1, num_batches(num_examples, size)) * size
