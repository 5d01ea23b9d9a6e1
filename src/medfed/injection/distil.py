"""What the LLM is taught in a step: examples with the answer that is wanted, by the label or by the aggregated heads.

Distillation (Hinton et al. 2015): the heads know from all hospitals what a hundred public labels cannot tell. Their
answers cost no label, so an example may be a mixture of two (Zhang et al. 2018; for distillation Beyer et al. 2022),
and may be asked what another trained task asks of the same modalities: that teaches the LLM to read the question.

The server's own share of the federated training: encoders and heads learn the public labels, as at a client.

Deviation: FedKIM's server trains the encoders through the LLM. Measured (docs/results.md), the LLM's loss on few public
examples harms them, while the heads' loss helps both the federation and the LLM that learns from it.
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


class Lesson(NamedTuple):
    """A group and the wanted distribution over its task's answers."""

    group: Group
    wanted: Float[Tensor, "batch answer"]


def lessons(model: MultimodalModel, groups: Sequence[Group], settings: InjectionSettings) -> list[Lesson]:
    """Return what to learn from ``groups``; chance is torch's.

    Args:
        model: the aggregated model; its heads teach.
        groups: examples by task, with their encoder tokens.
        settings: who teaches, and how.
    """
    found: list[Lesson] = []
    taught: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        by_head = torch.rand(len(group.batch), device=group.batch.target.device) < settings.teacher_weight
        if not by_head.all():
            kept = _part(group, ~by_head)
            found.append(Lesson(kept, F.one_hot(kept.batch.target, len(group.task.answers)).float()))
        if by_head.any():
            taught.setdefault(group.task.modalities, []).append(_part(group, by_head))
    for members in taught.values():
        found += _taught(model, members, settings)
    return found


@torch.no_grad()
def _taught(model: MultimodalModel, groups: Sequence[Group], settings: InjectionSettings) -> list[Lesson]:
    """Let the heads answer for examples of tasks with the same modalities."""
    tokens, present = _pooled(groups)
    count = sum(len(group.batch) for group in groups)
    device = groups[0].batch.target.device
    if settings.teacher_mixing:
        tokens = _mixed(tokens, present, count, device)
    peers = [task for task in model.tasks.values() if task.modalities == groups[0].task.modalities]
    number = {task.name: position for position, task in enumerate(peers)}
    asked = torch.cat([torch.full((len(group.batch),), number[group.task.name], device=device) for group in groups])
    crossed = torch.rand(count, device=device) < settings.teacher_crossing
    asked = torch.where(crossed, torch.randint(len(peers), (count,), device=device), asked)
    found = []
    for position, task in enumerate(peers):
        rows = (asked == position).nonzero().squeeze(1)
        if len(rows):
            shown = {name: values[rows] for name, values in tokens.items()}
            wanted = task.predict(model.decode(task, shown, len(rows)))
            batch = Batch({}, {name: there[rows] for name, there in present.items()}, wanted.argmax(-1))
            found.append(Lesson(Group(task, shown, batch), wanted))
    return found


def _pooled(groups: Sequence[Group]) -> tuple[dict[str, Tensor], dict[str, Bool[Tensor, " batch"]]]:
    """Join the groups' tokens and presence; a modality that a whole group lacks becomes zeros."""
    modalities = groups[0].task.modalities
    present = {name: torch.cat([group.batch.present[name] for group in groups]) for name in modalities}
    tokens = {}
    for name in modalities:
        shape = next((group.encoded[name].shape[1:] for group in groups if name in group.encoded), None)
        if shape is not None:
            empty = groups[0].batch.target
            parts = [
                group.encoded[name].detach()
                if name in group.encoded
                else torch.zeros(len(group.batch), *shape, device=empty.device)
                for group in groups
            ]
            tokens[name] = torch.cat(parts)
    return tokens, present


def _mixed(
    tokens: Mapping[str, Float[Tensor, "batch tokens dim"]],
    present: Mapping[str, Bool[Tensor, " batch"]],
    count: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Mix every example with another, by one share for all its modalities; what either lacks stays its own."""
    partner: Int[Tensor, " batch"] = torch.randperm(count, device=device)
    share = torch.rand(count, 1, 1, device=device)
    mixed = {}
    for name, values in tokens.items():
        both = (present[name] & present[name][partner]).view(-1, 1, 1)
        mixed[name] = torch.where(both, share * values + (1 - share) * values[partner], values)
    return mixed


def _part(group: Group, rows: Bool[Tensor, " batch"]) -> Group:
    """Return the group's examples at ``rows``."""
    if rows.all():
        return group
    batch = Batch({}, {name: there[rows] for name, there in group.batch.present.items()}, group.batch.target[rows])
    return Group(group.task, {name: values[rows] for name, values in group.encoded.items()}, batch)


BATCH_SIZE = 8
"""Examples per task and step."""


def train_public(
    model: MultimodalModel,
    sets: Mapping[str, TaskSet],
    lr: float,
    device: str,
    seed: int,
    round_number: int,
    *,
    alone: bool = False,
) -> None:
    """Train ``model`` in place for one pass over the largest set; smaller ones repeat. Chance comes from the key.

    The clients' normalisation statistics stand, unless the server is ``alone``: its own come from few examples.

    Raises:
        RunError: a loss is not finite.
    """
    optimizer = torch.optim.Adam(trainable_params(model).values(), lr, fused=True)
    steps = max(-(-len(examples) // BATCH_SIZE) for examples in sets.values())
    orders = {
        name: _order(len(examples), steps * BATCH_SIZE, numpy_rng(seed, "public", round_number, name))
        for name, examples in sorted(sets.items())
    }
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    model.train()
    with torch_seeded(seed, "public", round_number):
        for step in range(steps):
            losses = []
            for name, order in orders.items():
                task = closed(sets[name].task)
                batch = sets[name].batch(order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]).to(device)
                losses.append(task.loss(model(task, batch), batch))
            total = torch.stack(losses).sum()
            mean = total.item() / len(losses)
            if not math.isfinite(mean):
                raise RunError(
                    f"the loss is {mean}",
                    where=f"public pass of round {round_number}, step {step}",
                    hint="lower injection.public_lr",
                )
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    if not alone:
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(statistics[name])


def _order(size: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Return ``wanted`` positions in fresh permutations of ``size``."""
    rounds = -(-wanted // size)
    return np.concatenate([rng.permutation(size) for _ in range(rounds)])[:wanted]
