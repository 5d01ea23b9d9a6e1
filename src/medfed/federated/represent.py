"""Asking a model for its representations: under other weights (MOON), and of the public examples (CreamFL)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from medfed.errors import StudyError
from medfed.federated.contrast import Rows
from medfed.federated.optimizer import ClientSettings, autocast
from medfed.federated.state import Weights
from medfed.models.base import FederatedModel
from medfed.rng import numpy_rng, seed_of
from medfed.tasks.base import Task, TaskSet, trainable
from medfed.types import Batch


class _Asked(nn.Module):
    """Makes ``representations`` the forward of a module, because ``functional_call`` knows no other method."""

    def __init__(self, model: FederatedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, task: Task, batch: Batch) -> dict[str, Tensor]:
        return self.model.representations(task, batch)


def federated(model: nn.Module | None) -> FederatedModel:
    """Return ``model`` as one that gives representations.

    Raises:
        StudyError: it gives none.
    """
    if not isinstance(model, FederatedModel):
        raise StudyError(
            f"{type(model).__name__} gives no representations, which this algorithm contrasts",
            where="algorithm",
            hint="choose a model of the registry, or an algorithm that does without (fedavg)",
        )
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode inside the block: no dropout, and normalisation statistics stay as they are."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def representations_at(
    model: nn.Module, weights: Weights, task: Task, batch: Batch, settings: ClientSettings
) -> dict[str, Float[Tensor, "batch dim"]]:
    """Return the representations of ``batch`` at other ``weights``, in the model's present mode, at least in float32.

    Buffers are copied first, so a model in training mode changes neither its own statistics nor those given.
    """
    buffers = {name: value.clone() for name, value in weights.buffers.items()}
    tensors = {f"model.{name}": value for part in (weights.params, buffers) for name, value in part.items()}
    with autocast(settings):
        found = functional_call(_Asked(federated(model)), tensors, (task, batch))
    return {name: _wide(value) for name, value in cast(dict[str, Tensor], found).items()}


def unit_representations(
    model: nn.Module, task: Task, batch: Batch, settings: ClientSettings
) -> dict[str, Float[Tensor, "batch dim"]]:
    """Return the representations of ``batch`` under the model's own weights, as unit vectors; zeros where absent."""
    with autocast(settings):
        found = federated(model).representations(task, batch)
    return {name: F.normalize(_wide(value), dim=-1) for name, value in found.items()}


def ids_of(examples: tuple[str, ...] | list[str]) -> Int[Tensor, " example"]:
    """Return example ids as whole numbers, by which two parties align their public examples."""
    return torch.tensor([seed_of("example", example) for example in examples], dtype=torch.int64)


def aligned(examples: TaskSet) -> tuple[Int[np.ndarray, " example"], Int[Tensor, " example"]]:
    """Return the positions of public examples in the order of :func:`ids_of`, the same at every party, and the ids."""
    ids, order = ids_of(examples.examples).sort()
    return order.numpy(), ids


def view(examples: TaskSet, positions: Int[np.ndarray, " batch"]) -> Batch:
    """Return public examples as every party sees them: augmented (cropped, say) as drawn from their ids."""
    batch, task = examples.batch(positions), trainable(examples.task)
    rows = [
        task.augment(batch.row(number), numpy_rng("public view", example))
        for number, example in enumerate(batch.examples)
    ]
    return Batch(
        {name: torch.cat([row.inputs[name] for row in rows]) for name in batch.inputs},
        {name: torch.cat([row.present[name] for row in rows]) for name in batch.present},
        torch.cat([row.target for row in rows]),
        batch.examples,
        batch.questions,
    )


@torch.no_grad()
def represented(
    model: nn.Module, examples: TaskSet, order: Int[np.ndarray, " example"], settings: ClientSettings
) -> dict[str, Rows]:
    """Return, by modality, the representations of ``examples`` in ``order``, in eval mode, float32, on the CPU."""
    vectors: dict[str, list[Tensor]] = {}
    present: dict[str, list[Tensor]] = {}
    device = next(model.parameters()).device
    with evaluating(model):
        for first in range(0, len(order), settings.batch_size):
            batch = view(examples, order[first : first + settings.batch_size])
            for name, value in unit_representations(model, examples.task, batch.to(device), settings).items():
                vectors.setdefault(name, []).append(value.float().cpu())
                present.setdefault(name, []).append(batch.present[name])
    return {name: Rows(torch.cat(parts), torch.cat(present[name])) for name, parts in vectors.items()}


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
