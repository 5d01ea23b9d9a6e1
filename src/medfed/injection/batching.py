"""."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


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


MULTIPLIES_PER_LAYER = {"cpu": 1e7, "cuda": 5e10}
"""Multiplications that a device could do in the time that a decoder layer takes apart from its positions: measured on
one core, and for a GPU half a millisecond of launches at 100 TFLOP/s. It only has to be right within a factor of a few.
"""


def overhead(llm: nn.Module, num_layers: int) -> float:
    """Return the fixed cost of a forward in positions.

    Args:
        llm: a causal LM; only the size and the place of its weights count.
        num_layers: its decoder layers.
    """
    embeddings = llm.get_input_embeddings().weight  # type: ignore[operator]
    body = sum(value.numel() for value in llm.parameters() if value.shape != embeddings.shape)
    per_device = MULTIPLIES_PER_LAYER.get(embeddings.device.type, MULTIPLIES_PER_LAYER["cuda"])
    return per_device * num_layers / max(body, 1)


def buckets(lengths: Sequence[int], sizes: Sequence[int], fixed: float) -> list[list[int]]:
    """Divide groups so that Σ rows x longest + ``fixed`` per bucket is least; each bucket in the order given.

    Args:
        lengths: positions of every group's examples.
        sizes: examples of every group.
        fixed: cost of a bucket, in positions.
    """
    distinct = sorted(set(lengths))
    rows = [0]
    for length in distinct:
        rows.append(rows[-1] + sum(size for size, own in zip(sizes, lengths, strict=True) if own == length))
    cost, start = [0.0], [0]
    for end, longest in enumerate(distinct, 1):
        options = [cost[begin] + (rows[end] - rows[begin]) * longest + fixed for begin in range(end)]
        cost.append(min(options))
        start.append(options.index(cost[-1]))
    found: list[list[int]] = []
    end = len(distinct)
    while end:
        held = set(distinct[start[end] : end])
        found.append([number for number, length in enumerate(lengths) if length in held])
        end = start[end]
    return found[::-1]


class Seam:
    """Cuts a graph in two: what lies above is run and differentiated in pieces, what lies below once."""

    def __init__(self) -> None:
        self._cuts: list[tuple[Tensor, Tensor]] = []

    def cut(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return ``value`` as a leaf that gathers gradients; one that needs none stays as it is."""
        if not value.requires_grad:
            return value
        leaf = value.detach().requires_grad_()
        self._cuts.append((value, leaf))
        return leaf

    def backward(self, *losses: Float[Tensor, ""]) -> None:
        """Hand the gathered gradients on, with those of ``losses`` that lie below the cut themselves."""
        below: list[tuple[Tensor, Tensor | None]] = [(loss, None) for loss in losses if loss.requires_grad]
        below += [(value, leaf.grad) for value, leaf in self._cuts if leaf.grad is not None]
        if below:
            torch.autograd.backward([value for value, _ in below], [grad for _, grad in below])
