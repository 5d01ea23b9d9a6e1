"""Several findings at once: every label is a yes or no of its own (Med-MMFL: the 14 labels of MIMIC-CXR).

A label that is unknown for an example has no part in its loss and none in the metrics.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from medfed.core.types import Batch
from medfed.datasets.decoded import Decoded
from medfed.tasks.base import ClosedTask, Json, TaskSet

__all__ = ["MultiLabel"]

UNKNOWN = -1


class MultiLabel(ClosedTask):
    """One sigmoid per label; ``answers`` name the labels, which are index columns of the dataset.

    ``target`` is the name of the whole, not a column.
    """

    kind: ClassVar[str] = "multilabel"
    injectable: ClassVar[bool] = False
    metric_kind: ClassVar[str] = "multilabel"

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The labels."""
        return self.answers

    def targets(self, data: Decoded) -> Int[np.ndarray, "example label"]:
        """1, 0, or −1 where unknown, per label."""
        return np.stack([data.target(label) for label in self.answers], axis=1)

    def usable(self, data: Decoded) -> Bool[np.ndarray, " example"]:
        """Whether any label is known."""
        return np.asarray((self.targets(data) != UNKNOWN).any(1))

    def counts(self, examples: TaskSet) -> dict[str, int]:
        """How many examples have each label."""
        positive = (examples.targets == 1).sum(0).tolist()
        return dict(zip(self.answers, positive, strict=True))

    def loss(self, outputs: Float[Tensor, "batch label"], batch: Batch) -> Float[Tensor, ""]:
        """Mean binary cross-entropy over the known labels of the batch; 0 where none is known."""
        known = batch.target != UNKNOWN
        losses = F.binary_cross_entropy_with_logits(outputs, batch.target.clamp_min(0).to(outputs), reduction="none")
        # not a product with the mask: an overflow behind a masked label would make it NaN
        return torch.where(known, losses, 0).sum() / known.sum().clamp_min(1)

    def predict(self, outputs: Float[Tensor, "batch label"]) -> Float[Tensor, "batch label"]:
        """Probability of every label."""
        return outputs.sigmoid()

    def truths(self, examples: TaskSet) -> list[Json]:
        """Return 1, 0 or None per label."""
        return [[None if value == UNKNOWN else value for value in row] for row in examples.targets.tolist()]
