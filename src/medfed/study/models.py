"""Settings of the models that clients train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from medfed.core.errors import StudyError
from medfed.core.registry import implementation
from medfed.study.parts import EncoderSpec, ModelSpec

if TYPE_CHECKING:
    from medfed.modalities.base import Modality
    from medfed.models.base import FederatedModel
    from medfed.tasks.base import Task


class BlipSpec(ModelSpec):
    """Settings of the fusion and the decoder; a preset for two cores. Every task asks a question and has an answer."""

    name: ClassVar[str] = "blip"
    implementation: ClassVar[str] = "medfed.models.blip:Blip"
    question: str = "question"  # the modality that reads the others
    dim: int = Field(default=64, gt=0)
    depth: int = Field(default=2, gt=0)  # blocks of the fusion
    decoder_depth: int = Field(default=1, gt=0)  # blocks of the decoder
    num_heads: int = Field(default=4, gt=0)  # attention heads; must divide `dim`
    mlp_ratio: int = Field(default=2, gt=0)  # width of a block's MLP in multiples of `dim`
    dropout: float = Field(default=0.0, ge=0, lt=1)  # in every block

    @model_validator(mode="after")
    def _check_heads(self) -> BlipSpec:
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} must divide dim={self.dim}")
        return self


class BlipBaseSpec(BlipSpec):
    """BLIP-base: 12 blocks of width 768; with a ViT-B/16 and BERT-base it has 498 million parameters."""

    name: ClassVar[str] = "blip-base"
    dim: int = Field(default=768, gt=0)
    depth: int = Field(default=12, gt=0)
    decoder_depth: int = Field(default=12, gt=0)
    num_heads: int = Field(default=12, gt=0)
    mlp_ratio: int = Field(default=4, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)


PRESETS = {"small": (4, 3, 16), "full": (16, 4, 128)}
"""Preset → channels of the finest level, number of levels, hidden units of the fusion's weights."""


class RFNetSpec(ModelSpec):
    """RFNet."""

    name: ClassVar[str] = "rfnet"
    needs_encoders: ClassVar[bool] = False

    preset: Literal["small", "full"] = "small"  # `small` for two cores, or `full`, the paper's size
    drop_sequences: bool = True  # in training, fuse a random subset of the sequences an example has (the paper's way)

    def build(
        self, encoders: Mapping[str, EncoderSpec], modalities: Mapping[str, Modality], tasks: tuple[Task, ...]
    ) -> FederatedModel:
        """Return the network, which brings its own encoders; raise StudyError unless the one task is a segmentation."""
        if len(tasks) != 1 or tasks[0].kind != "segmentation":
            what = f"rfnet segments, one task at a time; the study trains {', '.join(task.name for task in tasks)}"
            raise StudyError(what, where="model", hint='train = ["brats"], or model = "multimodal"')
        made: FederatedModel = implementation("medfed.models.rfnet:RFNet")(tasks[0], self.preset, self.drop_sequences)
        return made


class SymileSpec(ModelSpec):
    """Settings of the model; every task is one of retrieval."""

    name: ClassVar[str] = "symile"
    implementation: ClassVar[str] = "medfed.models.symile:SymileModel"
    dim: int = Field(default=64, gt=1)  # width of the shared space; 8192 in the paper
    temperature: float = Field(default=0.07, gt=0)  # initial temperature, the inverse of the scale
    max_scale: float = Field(default=100.0, gt=0)  # bound of the learned scale (CLIP's 100)


class MultimodalSpec(ModelSpec):
    """Encoders, mean fusion and heads; it has no settings of its own."""

    name: ClassVar[str] = "multimodal"

    def build(
        self, encoders: Mapping[str, EncoderSpec], modalities: Mapping[str, Modality], tasks: tuple[Task, ...]
    ) -> FederatedModel:
        """Return the model; raise StudyError if a task has no head."""
        made: FederatedModel = implementation("medfed.models.multimodal:MultimodalModel")(encoders, modalities, tasks)
        return made


MODELS: tuple[type[ModelSpec], ...] = (BlipSpec, BlipBaseSpec, RFNetSpec, SymileSpec, MultimodalSpec)
