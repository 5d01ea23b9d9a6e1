"""The values an algorithm gets of a client: its data and model, one step with its mini-batches, and the outcome.

An algorithm knows parameters, losses and gradients through these values only, so a new one never changes the client's
loop. A step takes one mini-batch of every task the client has (FedKIM Eq. 1). An epoch is as many steps as the largest
task has mini-batches; smaller tasks go on with fresh permutations. A last mini-batch of one example joins the one
before it, because BatchNorm has no spread to divide by there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.func import functional_call

from medfed.core.rng import Key, numpy_rng
from medfed.core.types import Batch, Broadcast, Params
from medfed.federated.state import Weights, persistent_buffers
from medfed.study.federation import ClientSettings
from medfed.tasks.base import Task, TaskSet, trainable


class TaskBatch(NamedTuple):
    """A mini-batch of one task and its weight in the step's loss (Eq. 1: the mean over tasks)."""

    task: Task
    batch: Batch
    weight: float


@dataclass(frozen=True)
class Site:
    """A client during one round."""

    client: str
    # the module that trains. Its weights are the loop's: evaluate others with `torch.func.functional_call`.
    model: nn.Module
    tasks: Mapping[str, TaskSet]  # private examples by task
    public: Mapping[str, TaskSet]  # examples that the server has as well (algorithms that exchange representations)
    settings: ClientSettings
    seed: int  # the run's seed


@dataclass(frozen=True)
class LocalStep:
    """One step of local training, between the batch and the optimizer."""

    site: Site
    index: int  # 0-based step of the round
    params: Mapping[str, nn.Parameter]  # live parameters that train (those the client has data for)
    batches: tuple[TaskBatch, ...]  # one mini-batch per task
    personal: bool = False  # whether this is the client's own second model (`Algorithm.personal`)

    def gradient(self, params: Params) -> dict[str, Tensor]:
        """Return the gradient of this step's task loss at other ``params``."""
        return gradient(self.site, self.batches, params)


@dataclass(frozen=True)
class Trained:
    """The outcome of local training."""

    site: Site
    weights: Weights  # the trained model, on the CPU
    # trained minus broadcast parameters, of those that were broadcast; float32, or float64 for float64 ones
    delta: Params
    num_examples: int  # private examples, over all tasks
    num_steps: int  # optimizer steps taken
    examples: Mapping[str, int]  # examples by component, see `medfed.core.types.Update`
    personal: Weights | None = None  # the client's own second model after its training, if the algorithm keeps one

    def shared_buffers(self, broadcast: Broadcast) -> Params:
        """Return the trained buffers of the tensors that were broadcast."""
        return {name: self.weights.buffers[name] for name in broadcast.buffers}

    def gradient(self, params: Params) -> dict[str, Tensor]:
        """Return the gradient of the client's whole task loss at other ``params``: one pass over all its examples."""
        return gradient(self.site, in_order(self.site.tasks, self.site.settings.batch_size), params)


@dataclass(frozen=True)
class Upload:
    """The tensors that leave for the server, and those that stay."""

    delta: Params  # change of every parameter
    buffers: Params  # local buffers
    state: Params = field(default_factory=dict)  # the algorithm's own tensors
    client_state: Params = field(default_factory=dict)  # what the client keeps until its next round


def gradient(site: Site, batches: Iterable[TaskBatch], params: Params) -> dict[str, Tensor]:
    """Return the gradient of the weighted sum of task losses at ``params``; the model itself stays as it is."""
    device = site.settings.device
    points = {name: value.detach().to(device).requires_grad_() for name, value in params.items()}
    buffers = {name: value.clone() for name, value in persistent_buffers(site.model).items()}
    total = {name: torch.zeros_like(value) for name, value in points.items()}
    for task, batch, weight in batches:
        on_device = batch.to(device)
        with autocast(site.settings):
            outputs = functional_call(site.model, (points, buffers), (task, on_device))
            loss = weight * trainable(task).loss(outputs, on_device)
        parts = torch.autograd.grad(loss, list(points.values()), allow_unused=True)
        for name, part in zip(points, parts, strict=True):
            if part is not None:
                total[name] += part
    return total


def autocast(settings: ClientSettings) -> torch.autocast:
    """Return the context of a forward pass in the client's precision."""
    device = torch.device(settings.device).type
    return torch.autocast(device, torch.bfloat16, enabled=settings.precision == "bfloat16")


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
    draws = {name: _positions(len(part), size, numpy_rng(*key, name, "batches")) for name, part in tasks.items()}
    rngs = {name: numpy_rng(*key, name, "augment") for name in tasks}
    for _ in range(length):
        batches = {name: part.batch(next(draws[name])) for name, part in tasks.items()}
        yield tuple(
            TaskBatch(part.task, trainable(part.task).augment(batches[name], rngs[name]), 1 / len(tasks))
            for name, part in tasks.items()
        )


def _positions(num_examples: int, size: int, rng: np.random.Generator) -> Iterator[Int[np.ndarray, " batch"]]:
    while True:
        yield from np.split(rng.permutation(num_examples), _cuts(num_examples, size))


def _cuts(num_examples: int, size: int) -> Int[np.ndarray, " cut"]:
    """Where one pass is cut into mini-batches."""
    return np.arange(1, num_batches(num_examples, size)) * size
