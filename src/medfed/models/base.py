"""Base of the models that clients train: a module with outputs and representations for tasks.

Algorithms that contrast or exchange representations (MOON, CreamFL) know a model by
:meth:`FederatedModel.representations` alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Batch
from medfed.modalities.base import Modality
from medfed.study.parts import EncoderSpec, ModelSpec
from medfed.tasks.base import Task

__all__ = ["Encoder", "FederatedModel"]

Encoders = Mapping[str, EncoderSpec]
Modalities = Mapping[str, Modality]
Tasks = tuple[Task, ...]


class Encoder(nn.Module, ABC):
    """``[batch, *sample]`` → ``[batch, tokens, dim]``."""

    dim: int

    @abstractmethod
    def forward(self, samples: Float[Tensor, "batch *sample"]) -> Float[Tensor, "batch tokens dim"]:
        """Encode normalised samples."""


class FederatedModel(nn.Module, ABC):
    """A model of some tasks.

    In the mean over clients, tensors named ``encoders.<modality>.`` count by the examples that have the modality.
    Those named ``heads.<task>.`` count by the task's examples, and all others by every example of a client.
    """

    @abstractmethod
    def forward(self, task: Task, batch: Batch) -> Float[Tensor, "..."]:
        """Return the outputs that the task's loss wants."""

    @abstractmethod
    def representations(self, task: Task, batch: Batch) -> dict[str, Float[Tensor, "batch dim"]]:
        """Return one vector per example for every modality of ``task``; zeros where the modality is absent."""


def initialised(spec: ModelSpec, encoders: Encoders, modalities: Modalities, tasks: Tasks, seed: int) -> FederatedModel:
    """Build a model with initial weights drawn from ``seed``: a function of its arguments alone, in any process."""
    with torch_seeded(seed, "model"):
        return spec.build(encoders, modalities, tasks)
