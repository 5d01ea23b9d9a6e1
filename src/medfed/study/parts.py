"""Settings of an encoder and of a model. They name what they stand for, so reading them imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel

from medfed.core.errors import StudyError
from medfed.core.registry import implementation

if TYPE_CHECKING:
    from medfed.modalities.base import Modality
    from medfed.models.base import Encoder, FederatedModel
    from medfed.tasks.base import Task

__all__ = ["EncoderSpec", "ModelSpec"]


class SettingsModel(BaseModel, frozen=True, extra="forbid"):
    """Settings that never change; an unknown key is an error."""


class PartSpec(SettingsModel, ABC):
    """Settings of a part under its registry ``name``."""

    name: ClassVar[str]


class EncoderSpec(PartSpec):
    """Settings of an encoder; ``build`` makes the module.

    The module maps ``Float[Tensor, "batch *sample"]`` to ``Float[Tensor, "batch tokens dim"]``, ``dim`` wide.
    """

    dim: int

    @abstractmethod
    def build(self, modality: Modality) -> Encoder:
        """Return a freshly initialised encoder for samples of ``modality``; raise StudyError if it cannot take them."""

    def require(self, fits: bool, modality: Modality, takes: str, hint: str = "choose another encoder") -> None:
        """Raise StudyError unless the samples of ``modality`` have a form that the encoder ``takes``."""
        if not fits:
            what = f"encoder {self.name!r} takes {takes}, not samples of shape {modality.sample_shape}"
            raise StudyError(what, where=f"modality {modality.name!r}", hint=hint)


class ModelSpec(PartSpec):
    """Settings of a model; ``build`` makes the module."""

    needs_encoders: ClassVar[bool] = True  # whether the study names one for every modality; a model may bring its own
    implementation: ClassVar[str]  # `module:class` of the model, made of these settings, encoders, modalities and tasks

    def build(
        self, encoders: Mapping[str, EncoderSpec], modalities: Mapping[str, Modality], tasks: tuple[Task, ...]
    ) -> FederatedModel:
        """Return a freshly initialised model of ``tasks``; raise StudyError if it cannot answer one of them."""
        made: FederatedModel = implementation(self.implementation)(self, encoders, modalities, tasks)
        return made
