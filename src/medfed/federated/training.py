"""The optimizer loop of one round at one client (FedKIM Eq. 1 and 2; McMahan et al. 2017, ClientUpdate).

Every step takes one mini-batch of every task the client has. The loss is the mean over tasks of the mean over examples,
plus the algorithm's penalty. Batches and dropout are drawn from (seed, client, round).

The optimizer's slots (moments, momentum) are dropped after every round unless ``reset_optimizer`` is off. Then they
stay with the client and travel into checkpoints, never to the server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from medfed.core.errors import RunError
from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Broadcast, Params, component
from medfed.federated.algorithm import Algorithm
from medfed.federated.local import LocalStep, Site, TaskBatch, autocast, steps
from medfed.federated.state import Weights, copied, load_weights, persistent_buffers, trainable_params
from medfed.study.federation import ClientSettings
from medfed.tasks.base import trainable


@dataclass(frozen=True)
class Fitted:
    """The outcome of a loop."""

    weights: Weights  # the trained model, on the CPU
    num_steps: int  # optimizer steps taken
    losses: Mapping[str, float]  # mean loss over the steps, by task
    slots: Params  # the optimizer's slots, on the CPU; none where every round starts with fresh ones


@dataclass(frozen=True)
class LocalRun:
    """The loop with all that stays the same from step to step."""

    site: Site
    broadcast: Broadcast  # what the server sent, on the site's device
    algorithm: Algorithm
    state: Params  # the algorithm's client state, on the site's device
    examples: Mapping[str, int]  # examples by component; a component without any does not train

    def fit(self, start: Weights, slots: Params, *, personal: bool = False) -> Fitted:
        """Train the model from ``start``, with the last round's ``slots``; raise RunError if a loss is not finite."""
        site, settings = self.site, self.site.settings
        load_weights(site.model, start)
        site.model.train()
        live = trainable_params(site.model)
        params = {name: value for name, value in live.items() if self.examples[component(name)]}
        optimizer = make_optimizer(list(params.values()), settings)
        load_slots(optimizer, params, slots)
        key = (site.seed, site.client, self.broadcast.round, "personal" if personal else "train")
        totals, num_steps = dict.fromkeys(site.tasks, 0.0), 0
        with torch_seeded(*key):
            for num_steps, batches in enumerate(steps(site.tasks, settings, *key), start=1):
                step = LocalStep(site, num_steps - 1, params, batches, personal)
                for task, loss in self._backward(step).items():
                    totals[task] += loss
                clip(list(params.values()), settings)
                optimizer.step()
        site.model.zero_grad()
        losses = {task: total / num_steps for task, total in totals.items()}
        kept = {} if settings.reset_optimizer else slots_of(optimizer, params)
        weights = Weights(copied(live), copied(persistent_buffers(site.model)))
        return Fitted(weights, num_steps, losses, kept)

    def _backward(self, step: LocalStep) -> dict[str, float]:
        """Leave the step's gradient in the parameters and return the loss of every task."""
        for param in step.params.values():
            param.grad = None
        losses = {item.task.name: self._backward_task(step, item) for item in step.batches}
        penalty = self.algorithm.penalty(step, self.broadcast, self.state)
        if penalty is not None:
            torch.autograd.backward(penalty)
        for param in step.params.values():
            if param.grad is None:  # to a batch that lacks a modality its encoder has the gradient 0
                param.grad = torch.zeros_like(param)
        if self.algorithm.corrects:
            gradients = {name: param.grad for name, param in step.params.items() if param.grad is not None}
            corrected = self.algorithm.correct(gradients, step, self.broadcast, self.state)
            if corrected is not None:
                for name, param in step.params.items():
                    param.grad = corrected[name]
        return losses

    def _backward_task(self, step: LocalStep, item: TaskBatch) -> float:
        batch = item.batch.to(self.site.settings.device)
        with autocast(self.site.settings):
            loss = trainable(item.task).loss(self.site.model(item.task, batch), batch)
        torch.autograd.backward(item.weight * loss)
        value = float(loss.detach())
        if not math.isfinite(value):
            what = f"the loss of task {item.task.name!r} is {value} at step {step.index + 1}"
            where = f"client {self.site.client!r}, round {self.broadcast.round}"
            hint = "lower client.lr, set client.max_grad_norm, or check the client's data"
            raise RunError(what, where=where, hint=hint)
        return value


def make_optimizer(params: list[nn.Parameter], settings: ClientSettings) -> Optimizer:
    """Return the optimizer over ``params``, in the fused form: one kernel a step instead of several per tensor."""
    if settings.optimizer == "sgd":
        return SGD(params, settings.lr, settings.momentum, weight_decay=settings.weight_decay, fused=True)
    adam = Adam if settings.optimizer == "adam" else AdamW
    return adam(params, settings.lr, weight_decay=settings.weight_decay, fused=True)


def slots_of(optimizer: Optimizer, params: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Copy the optimizer's slots to the CPU as ``slot/parameter``."""
    return {
        f"{slot}/{name}": value.detach().to("cpu", copy=True)
        for name, param in params.items()
        for slot, value in optimizer.state.get(param, {}).items()
        if isinstance(value, Tensor)
    }


def load_slots(optimizer: Optimizer, params: Mapping[str, nn.Parameter], slots: Params) -> None:
    """Give the optimizer the slots that :func:`slots_of` copied; parameters without any start fresh."""
    for full, value in slots.items():
        slot, _, name = full.partition("/")
        if name in params:
            optimizer.state[params[name]][slot] = value.detach().to(params[name].device, copy=True)


def clip(params: list[nn.Parameter], settings: ClientSettings) -> None:
    """Scale the gradients down to ``max_grad_norm``, if there is one."""
    if settings.max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(params, settings.max_grad_norm)
