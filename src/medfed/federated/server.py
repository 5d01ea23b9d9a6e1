"""Training on the server, for algorithms whose server has a model and public examples of its own (CreamFL)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from medfed.core.errors import RunError
from medfed.core.rng import Key, numpy_rng
from medfed.core.types import Batch
from medfed.federated.batches import num_batches, steps
from medfed.federated.optimizer import autocast, make_optimizer
from medfed.federated.representations import Exchanged, Rows, unit_representations, view
from medfed.federated.state import trainable_params
from medfed.study.federation import ClientSettings
from medfed.tasks.base import TaskSet, trainable

Targets = Mapping[str, Mapping[str, Rows]]
"""Task → modality → the representations that the server's model shall come to have."""


def minimise(model: nn.Module, losses: Iterable[Tensor], settings: ClientSettings) -> None:
    """Take an optimizer step for every one of ``losses``, which are evaluated one after the other.

    Raises:
        RunError: a loss is not finite.
    """
    params = list(trainable_params(model).values())
    optimizer = make_optimizer(params, settings)
    model.train()
    for loss in losses:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunError(f"a loss is {value}", where="the server's training", hint="lower algorithm.server_lr")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.zero_grad()


def label_losses(
    model: nn.Module, public: Mapping[str, TaskSet], settings: ClientSettings, *key: Key
) -> Iterator[Tensor]:
    """Yield, step by step, the mean over tasks of the loss on public labels."""
    device = settings.device
    for items in steps(public, settings, *key, "labels"):
        losses = []
        for item in items:
            batch = item.batch.to(device)
            with autocast(settings):
                losses.append(item.weight * trainable(item.task).loss(model(item.task, batch), batch))
        yield torch.stack(losses).sum()


def distillation_losses(
    model: nn.Module,
    public: Mapping[str, TaskSet],
    known: Exchanged,
    targets: Targets,
    settings: ClientSettings,
    *key: Key,
) -> Iterator[Tensor]:
    """Yield, batch by batch, ‖f(x) − target‖²: mean over the examples that have one, sum over modalities."""
    for epoch in range(settings.local_epochs):
        for name, positions in _draws(public, settings.batch_size, *key, "distillation", epoch):
            examples = public[name]
            batch = view(examples, positions)
            rows = known.find(name, batch.examples)
            own = unit_representations(model, examples.task, batch.to(settings.device), settings)
            terms = [
                _distance(own[modality], batch, modality, target, rows) for modality, target in targets[name].items()
            ]
            if any(term is not None for term in terms):
                yield torch.stack([term for term in terms if term is not None]).sum()


def _distance(own: Tensor, batch: Batch, modality: str, target: Rows, rows: Tensor) -> Tensor | None:
    has = target.has[rows] & batch.present[modality]
    if not bool(has.any()):
        return None
    return (own[has] - target.vectors[rows][has].to(own.device)).square().sum(-1).mean()


def _draws(public: Mapping[str, TaskSet], size: int, *key: Key) -> list[tuple[str, np.ndarray]]:
    """Return one pass over all tasks as batches in random order."""
    rng = numpy_rng(*key)
    batches = [
        (name, positions)
        for name, examples in sorted(public.items())
        for positions in np.split(rng.permutation(len(examples)), np.arange(1, num_batches(len(examples), size)) * size)
    ]
    return [batches[number] for number in rng.permutation(len(batches))]
