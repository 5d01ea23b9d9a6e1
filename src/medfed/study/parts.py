"""."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from medfed.modalities.base import Modality
from medfed.models.base import Encoder, FederatedModel
from medfed.tasks.base import Task


class EncoderSpec(BaseModel, ABC):
    """Settings of an encoder under its registry ``name``; ``build`` makes the module.

    The module maps ``Float[Tensor, "batch *sample"]`` to ``Float[Tensor, "batch tokens dim"]``, ``dim`` wide.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    dim: int

    @abstractmethod
    def build(self, modality: Modality) -> Encoder:
        """Return a freshly initialised encoder for samples of ``modality``; raise StudyError if it cannot take them."""


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
