"""Which public examples make a step, and which of them share a forward of the LLM.

Length buckets: a forward costs its padded positions and a fixed part (Python, kernel launches). Groups sorted by length
are cut where the sum is least. A tiny LLM never runs twice to save ten positions, a large one does. The fixed part is
counted in positions, from the size of the LLM alone. No clock is read, so a resumed run makes the same buckets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from torch import nn

_MULTIPLIES_PER_LAYER = {"cpu": 1e7, "cuda": 5e10}
"""Multiplications in the time of a layer's fixed part: measured on a core; on a GPU 0.5 ms of launches, 100 TFLOP/s."""


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
    """Return the epoch's examples in order, tasks mixed, given the class index of every example by task.

    Balanced, every task gets the same share of the epoch and, as nearly as its size allows, of every batch. Every class
    gets the same share of its task. Smaller ones repeat, each in fresh permutations.
    """
    total = sum(map(len, targets.values()))
    streams = {task: _stream(values if balance_classes else 0 * values, rng) for task, values in targets.items()}
    if balance_tasks:
        return [Draw(task, next(streams[task])) for _ in range(math.ceil(total / len(targets))) for task in targets]
    draws = [Draw(task, next(streams[task])) for task, values in targets.items() for _ in range(len(values))]
    return [draws[int(i)] for i in rng.permutation(total)]


def _stream(classes: Int[np.ndarray, " example"], rng: np.random.Generator) -> Iterator[int]:
    """Yield positions without end, the classes in turn."""

    def cycle(positions: Int[np.ndarray, " position"]) -> Iterator[int]:
        while True:
            yield from map(int, rng.permutation(positions))

    cycles = [cycle(np.flatnonzero(classes == value)) for value in np.unique(classes)]
    while True:
        for index in rng.permutation(len(cycles)):
            yield next(cycles[index])


def fixed_cost(llm: nn.Module, num_layers: int) -> float:
    """Return the fixed part of a forward in positions, by the size and the device of the LLM's weights."""
    embeddings = llm.get_input_embeddings().weight  # type: ignore[operator]
    body = sum(value.numel() for value in llm.parameters() if value.shape != embeddings.shape)
    per_layer = _MULTIPLIES_PER_LAYER.get(embeddings.device.type, _MULTIPLIES_PER_LAYER["cuda"])
    return per_layer * num_layers / max(body, 1)


def length_buckets(lengths: Sequence[int], sizes: Sequence[int], fixed: float) -> list[list[int]]:
    """Divide groups of ``sizes`` examples so that Σ rows × longest + ``fixed`` positions per bucket is least.

    ``lengths`` are the positions of every group's examples. Each bucket holds numbers of groups in the order given.
    """
    distinct = sorted(set(lengths))
    up_to = [sum(size for size, given in zip(sizes, lengths, strict=True) if given <= longest) for longest in distinct]
    rows, cost, start = [0, *up_to], [0.0], [0]
    for end, longest in enumerate(distinct, 1):
        options = [cost[begin] + (rows[end] - rows[begin]) * longest + fixed for begin in range(end)]
        cost.append(min(options))
        start.append(options.index(cost[-1]))
    buckets: list[list[int]] = []
    end = len(distinct)
    while end:
        held = set(distinct[start[end] : end])
        buckets.append([number for number, length in enumerate(lengths) if length in held])
        end = start[end]
    return buckets[::-1]
