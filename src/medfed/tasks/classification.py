"""Closed questions with one answer of a few: a linear head for the client, answer strings for the LLM.

In closed visual question answering (PathVQA, VQA-RAD) the question is an input like the image, and the answer yes or
no.
"""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from medfed.core.types import Batch
from medfed.datasets.decoded import Decoded
from medfed.tasks.base import ClosedTask

__all__ = ["Classification", "VisualQuestion"]


class Classification(ClosedTask):
    """One class per example; ``answers[i]`` names class i, and class 1 of a binary task is the finding."""

    kind: ClassVar[str] = "classification"
    answers: tuple[str, ...] = ("No", "Yes")

    def loss(self, outputs: Float[Tensor, "batch answer"], batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy."""
        return F.cross_entropy(outputs, batch.target)

    def predict(self, outputs: Float[Tensor, "batch answer"]) -> Float[Tensor, "batch answer"]:
        """Class probabilities."""
        return outputs.softmax(-1)


class VisualQuestion(Classification):
    """Answer the dataset's own question, a column of its index and one of the task's modalities."""

    kind: ClassVar[str] = "visual_question"
    metric_kind: ClassVar[str] = "closed_vqa"

    def questions(self, data: Decoded) -> tuple[str, ...]:
        """Question of every example."""
        return tuple(str(question) for question in data.index["question"])
