"""What clients train: a module that answers tasks, and can be asked for its representations.

Algorithms that contrast or exchange representations (MOON, CreamFL) know a model by
:meth:`FederatedModel.representations` alone, whatever is behind it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from medfed.modalities.base import EncoderSpec, Modality
from medfed.rng import torch_seeded
from medfed.tasks.base import Task
from medfed.types import Batch


class FederatedModel(nn.Module, ABC):
    """A model of some tasks.

    Tensors named ``encoders.<modality>.`` are weighed by the examples that have the modality, ``heads.<task>.`` by the
    task's examples, and all others by every example of a client.
    """

    @abstractmethod
    def forward(self, task: Task, batch: Batch) -> Float[Tensor, "..."]:
        """Return the outputs that the task's loss wants."""

    @abstractmethod
    def representations(self, task: Task, batch: Batch) -> dict[str, Float[Tensor, "batch dim"]]:
        """Return one vector per example for every modality of ``task``; zeros where the modality is absent."""


class ModelSpec(BaseModel, ABC):
    """Settings of a model under its registry ``name``; ``build`` makes the module.

    Attributes:
        needs_encoders: whether the study must name an encoder for every modality (a model may bring its own).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    needs_encoders: ClassVar[bool] = True

    @abstractmethod
    def build(
        self, encoders: Mapping[str, EncoderSpec], modalities: Mapping[str, Modality], tasks: tuple[Task, ...]
    ) -> FederatedModel:
        """Return a freshly initialised model of ``tasks``; raise StudyError if it cannot answer one of them."""


def initialised(
    spec: ModelSpec,
    encoders: Mapping[str, EncoderSpec],
    modalities: Mapping[str, Modality],
    tasks: tuple[Task, ...],
    seed: int,
) -> FederatedModel:
    """Build a model with initial weights drawn from ``seed``: a function of its arguments alone, in any process."""
    with torch_seeded(seed, "model"):
        return spec.build(encoders, modalities, tasks)
