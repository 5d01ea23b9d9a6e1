"""What injection leaves in the logs: a record per step, and the router's weights per round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medfed.errors import RunError
from medfed.injection.lessons import Lesson
from medfed.injection.router import entropy, total_variation


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        epoch: 0-based, within the round.
        step: 0-based, within the round.
        loss: mean over the batch.
        losses: mean by task.
        grad_norm: before clipping.
    """

    epoch: int
    step: int
    loss: float
    losses: Mapping[str, float]
    grad_norm: float

    def as_json(self) -> dict[str, Any]:
        """Return the fields for a log."""
        return {**vars(self), "losses": dict(self.losses)}


def by_task(taught: Sequence[Lesson], losses: Sequence[Tensor]) -> dict[str, float]:
    """Return the mean loss by task; ``losses`` are per lesson and example."""
    parts: dict[str, list[Tensor]] = {}
    for lesson, part in zip(taught, losses, strict=True):
        parts.setdefault(lesson.group.task.name, []).append(part)
    return {name: torch.cat(parts[name]).mean().item() for name in sorted(parts)}


def finite(loss: float, round_number: int, step: int) -> float:
    """Return ``loss``; raise RunError if it is not finite."""
    if not math.isfinite(loss):
        raise RunError(
            f"the loss is {loss}", where=f"injection, round {round_number}, step {step}", hint="lower injection.lr"
        )
    return loss


def routing_record(names: Sequence[str], alpha: Float[Tensor, "task expert"] | None) -> dict[str, Any]:
    """Return α and its entropy by task name, and the mean distance between tasks; empty for None."""
    if alpha is None:
        return {"alpha": {}, "entropy": {}, "total_variation": None}
    return {
        "alpha": dict(zip(names, alpha.tolist(), strict=True)),
        "entropy": dict(zip(names, entropy(alpha).tolist(), strict=True)),
        "total_variation": total_variation(alpha),
    }
