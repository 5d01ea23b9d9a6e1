"""Closed questions with one answer of a few: a linear head for the client, answer strings for the LLM."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.tasks.base import ClosedTask
from medfed.types import Batch


class Classification(ClosedTask):
    """One class per example; ``answers[i]`` names class i, and class 1 of a binary task is the finding."""

    kind: ClassVar[str] = "classification"
    answers: tuple[str, ...] = ("No", "Yes")

    def head(self, dim: int) -> nn.Module:
        """Return a layer norm and a linear layer."""
        return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, len(self.answers)))

    def loss(self, outputs: Float[Tensor, "batch answer"], batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy."""
        return F.cross_entropy(outputs, batch.target)

    def predict(self, outputs: Float[Tensor, "batch answer"]) -> Float[Tensor, "batch answer"]:
        """Class probabilities."""
        return outputs.softmax(-1)
