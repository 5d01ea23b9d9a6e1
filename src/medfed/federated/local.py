"""What an algorithm sees of a client: where it trains, one step of it, and what came out.

An algorithm knows parameters, losses and gradients. It gets them through these values, so a new algorithm never needs a
change to the client's loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medfed.core.types import Broadcast, Params
from medfed.federated.batches import TaskBatch, in_order
from medfed.federated.optimizer import autocast
from medfed.federated.state import Weights, persistent_buffers
from medfed.study.federation import ClientSettings
from medfed.tasks.base import TaskSet, trainable


@dataclass(frozen=True)
class Site:
    """A client during one round.

    Attributes:
        client: client id.
        model: the module that trains. Its weights are the loop's: evaluate others with
            :func:`torch.func.functional_call`.
        tasks: private examples by task.
        public: examples that the server has as well (algorithms that exchange representations).
        settings: how the client trains.
        seed: the run's seed.
    """

    client: str
    model: nn.Module
    tasks: Mapping[str, TaskSet]
    public: Mapping[str, TaskSet]
    settings: ClientSettings
    seed: int


@dataclass(frozen=True)
class LocalStep:
    """One step of local training, between the batch and the optimizer.

    Attributes:
        site: the client.
        index: 0-based step of the round.
        params: live parameters that train (those the client has data for).
        batches: one mini-batch per task.
        personal: whether this is the client's own second model (``Algorithm.personal``).
    """

    site: Site
    index: int
    params: Mapping[str, nn.Parameter]
    batches: tuple[TaskBatch, ...]
    personal: bool = False

    def gradient(self, params: Params) -> dict[str, Tensor]:
        """Return the gradient of this step's task loss at other ``params``."""
        return gradient(self.site, self.batches, params)


@dataclass(frozen=True)
class Trained:
    """What local training gave.

    Attributes:
        site: the client.
        weights: the trained model, on the CPU.
        delta: trained minus broadcast parameters, of those that were broadcast; float32, or float64 for float64 ones.
        num_examples: private examples, over all tasks.
        num_steps: optimizer steps taken.
        examples: examples by component, see :class:`medfed.core.types.Update`.
        personal: the client's own second model after its training, if the algorithm keeps one.
    """

    site: Site
    weights: Weights
    delta: Params
    num_examples: int
    num_steps: int
    examples: Mapping[str, int]
    personal: Weights | None = None

    def shared_buffers(self, broadcast: Broadcast) -> Params:
        """Return the trained buffers of the tensors that were broadcast."""
        return {name: self.weights.buffers[name] for name in broadcast.buffers}

    def gradient(self, params: Params) -> dict[str, Tensor]:
        """Return the gradient of the client's whole task loss at other ``params``: one pass over all its examples."""
        return gradient(self.site, in_order(self.site.tasks, self.site.settings.batch_size), params)


@dataclass(frozen=True)
class Upload:
    """What leaves for the server, and what stays.

    Attributes:
        delta: change of every parameter.
        buffers: local buffers.
        state: the algorithm's own tensors.
        client_state: what the client keeps until it is asked again.
    """

    delta: Params
    buffers: Params
    state: Params = field(default_factory=dict)
    client_state: Params = field(default_factory=dict)


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
