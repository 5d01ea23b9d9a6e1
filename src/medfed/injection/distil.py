"""The targets of the LLM: for every example the answer by its label, or by the aggregated heads.

Distillation (Hinton et al. 2015): the heads learned at all hospitals, so they know more than a hundred public labels.
Their answers need no label. An example may therefore be a mixture of two (Zhang et al. 2018; for distillation Beyer et
al. 2022), and may come with the question of another trained task on the same modalities. The latter teaches the LLM to
read the question.

The server also has a share of the federated training: encoders and heads learn the public labels, as at a client.

Deviation: FedKIM's server trains the encoders through the LLM. Measured (docs/results.md), the LLM's loss on few public
examples harms them. The heads' loss helps both the federation and the LLM that learns from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from medfed.core.errors import RunError
from medfed.core.rng import numpy_rng
from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Batch
from medfed.federated.state import trainable_params
from medfed.injection.encode import Group
from medfed.models.multimodal import MultimodalModel
from medfed.study.injection import InjectionSettings
from medfed.tasks.base import TaskSet, closed

_PUBLIC_BATCH = 8
"""Examples per task and step of the public pass."""


class DistillationBatch(NamedTuple):
    """A group and the target distribution over its task's answers."""

    group: Group
    target: Float[Tensor, "batch answer"]


def distillation_batches(
    model: MultimodalModel, groups: Sequence[Group], settings: InjectionSettings
) -> list[DistillationBatch]:
    """Return the examples of ``groups`` with their targets, some by the heads of ``model``; random by torch."""
    batches: list[DistillationBatch] = []
    by_modalities: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        by_head = torch.rand(len(group.batch), device=group.batch.target.device) < settings.teacher_weight
        if not by_head.all():
            labelled = _rows(group, ~by_head)
            target = F.one_hot(labelled.batch.target, len(group.task.answers)).float()
            batches.append(DistillationBatch(labelled, target))
        if by_head.any():
            by_modalities.setdefault(group.task.modalities, []).append(_rows(group, by_head))
    for members in by_modalities.values():
        batches += _by_heads(model, members, settings)
    return batches


@torch.no_grad()
def _by_heads(model: MultimodalModel, groups: Sequence[Group], settings: InjectionSettings) -> list[DistillationBatch]:
    """Let the heads answer for examples of tasks with the same modalities."""
    tokens, present = _joined(groups)
    count, device = sum(len(group.batch) for group in groups), groups[0].batch.target.device
    if settings.teacher_mixing:
        tokens = _mixed(tokens, present, count, device)
    peers = [task for task in model.tasks.values() if task.modalities == groups[0].task.modalities]
    names = [task.name for task in peers]
    given = [names.index(group.task.name) for group in groups for _ in range(len(group.batch))]
    crossed = torch.rand(count, device=device) < settings.teacher_crossing
    others = torch.randint(len(peers), (count,), device=device)
    question_of = torch.where(crossed, others, torch.tensor(given, device=device))
    batches = []
    for position, task in enumerate(peers):
        rows = (question_of == position).nonzero().squeeze(1)
        if len(rows):
            encoded = {name: values[rows] for name, values in tokens.items()}
            target = task.predict(model.decode(task, encoded, len(rows)))
            batch = Batch({}, {name: there[rows] for name, there in present.items()}, target.argmax(-1))
            batches.append(DistillationBatch(Group(task, encoded, batch), target))
    return batches


def _joined(groups: Sequence[Group]) -> tuple[dict[str, Tensor], dict[str, Bool[Tensor, " batch"]]]:
    """Join the groups' tokens and presence; a modality that a whole group lacks becomes zeros."""
    modalities = groups[0].task.modalities
    present = {name: torch.cat([group.batch.present[name] for group in groups]) for name in modalities}
    tokens = {}
    for name in modalities:
        like = next((group.encoded[name] for group in groups if name in group.encoded), None)
        if like is not None:
            zeros = [like.new_zeros(len(group.batch), *like.shape[1:]) for group in groups]
            tokens[name] = torch.cat([group.encoded.get(name, none) for group, none in zip(groups, zeros, strict=True)])
    return tokens, present


def _mixed(
    tokens: Mapping[str, Float[Tensor, "batch tokens dim"]],
    present: Mapping[str, Bool[Tensor, " batch"]],
    count: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Mix every example with another, by one share for all its modalities; a modality that either lacks stays."""
    partner: Int[Tensor, " batch"] = torch.randperm(count, device=device)
    share = torch.rand(count, 1, 1, device=device)
    both = {name: (there & there[partner]).view(-1, 1, 1) for name, there in present.items()}
    return {
        name: torch.where(both[name], share * values + (1 - share) * values[partner], values)
        for name, values in tokens.items()
    }


def _rows(group: Group, rows: Bool[Tensor, " batch"]) -> Group:
    """Return the group's examples at ``rows``."""
    if rows.all():
        return group
    batch = Batch({}, {name: there[rows] for name, there in group.batch.present.items()}, group.batch.target[rows])
    return Group(group.task, {name: values[rows] for name, values in group.encoded.items()}, batch)


def train_public(
    model: MultimodalModel, sets: Mapping[str, TaskSet], lr: float, seed: int, round_number: int, *, alone: bool = False
) -> None:
    """Train ``model`` in place for one pass over the largest public set; smaller ones repeat.

    The clients' normalisation statistics remain, unless the server is ``alone``: its own come from few examples.
    Raises RunError if a loss is not finite.
    """
    optimizer = torch.optim.Adam(trainable_params(model).values(), lr, fused=True)
    device = next(model.parameters()).device
    steps = max(-(-len(examples) // _PUBLIC_BATCH) for examples in sets.values())
    orders = {}
    for name, examples in sorted(sets.items()):
        rng, size, count = numpy_rng(seed, "public", round_number, name), len(examples), steps * _PUBLIC_BATCH
        order = np.concatenate([rng.permutation(size) for _ in range(-(-count // size))])[:count]
        orders[closed(examples.task)] = (examples, order.reshape(steps, _PUBLIC_BATCH))
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    model.train()
    with torch_seeded(seed, "public", round_number):
        for step in range(steps):
            losses = []
            for task, (examples, order) in orders.items():
                batch = examples.batch(order[step]).to(device)
                losses.append(task.loss(model(task, batch), batch))
            total = torch.stack(losses).sum()
            where = f"public pass of round {round_number}, step {step}"
            check_finite(total.item() / len(losses), where, "lower injection.public_lr")
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    if not alone:
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(statistics[name])


def check_finite(loss: float, where: str, hint: str) -> None:
    """Raise RunError if ``loss`` is not finite."""
    if not math.isfinite(loss):
        raise RunError(f"the loss is {loss}", where=where, hint=hint)
