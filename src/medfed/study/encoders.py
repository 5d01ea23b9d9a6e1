"""Settings of the encoders: which there are, their sizes, and what samples they take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from medfed.core.registry import implementation
from medfed.study.parts import EncoderSpec

if TYPE_CHECKING:
    from medfed.modalities.base import Modality
    from medfed.models.base import Encoder

SMALLEST = 32
"""Pixels per side that the strides of a ResNet's four stages need."""


def _made(spec: EncoderSpec, kind: str, *sizes: int) -> Encoder:
    """Return a new encoder of the class ``kind``, importing torch now."""
    made: Encoder = implementation(f"medfed.models.encoders:{kind}")(spec, *sizes)
    return made


class LabsMLPSpec(EncoderSpec):
    """Settings of the MLP."""

    name: ClassVar[str] = "labs-mlp"
    dim: int = Field(default=64, gt=0)  # width of the one token that leaves
    hidden: tuple[int, ...] = (128, 128)  # widths; the paper's are 256 and 1024, and its `dim` is 8192
    dropout: float = Field(default=0.0, ge=0, lt=1)  # after every hidden layer; the paper has none

    def build(self, modality: Modality) -> Encoder:
        """Return a freshly initialised encoder for flat samples; raise StudyError for others."""
        self.require(len(modality.sample_shape) == 1, modality, "flat samples")
        return _made(self, "LabsMLP", modality.sample_shape[0])


class Conv1dSpec(EncoderSpec):
    """Settings of the CNN."""

    name: ClassVar[str] = "conv1d"
    dim: int = Field(default=64, gt=0)  # width of a token, and of the last block
    num_blocks: int = Field(default=4, gt=0)  # convolution blocks
    kernel_size: int = Field(default=7, gt=0)  # odd, in samples
    stride: int = Field(default=3, gt=0)  # how much every block shortens the signal
    norm: Literal["group", "batch"] = "group"
    num_groups: int = Field(default=4, gt=0)  # groups of `norm="group"`; must divide the width of every block
    num_tokens: int = Field(default=4, gt=0)  # spans of time that leave
    dropout: float = Field(default=0.0, ge=0, lt=1)  # after every block

    @model_validator(mode="after")
    def _check_sizes(self) -> Conv1dSpec:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={self.kernel_size} must be odd")
        if self.norm == "group" and any(width % self.num_groups for width in self.widths):
            raise ValueError(f"num_groups={self.num_groups} must divide the block widths {self.widths}")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after every block: ``dim`` in the second half, half of it before."""
        first = self.num_blocks // 2
        return (max(self.dim // 2, 1),) * first + (self.dim,) * (self.num_blocks - first)

    def build(self, modality: Modality) -> Encoder:
        """Return a freshly initialised encoder for signals ``[lead, time]``; raise StudyError for others."""
        shape, least = modality.sample_shape, self.stride**self.num_blocks
        takes = f"samples [lead, time] of {least} or more time steps"
        hint = "choose fewer blocks, a smaller stride, or another encoder"
        self.require(len(shape) == 2 and shape[1] >= least, modality, takes, hint)
        return _made(self, "Conv1d", shape[0])


class ResNetSpec(EncoderSpec):
    """ResNet-50."""

    name: ClassVar[str] = "resnet"
    dim: int = Field(default=2048, gt=0)  # channels of the last stage; every stage before has half of the next
    depths: tuple[int, ...] = Field(default=(3, 4, 6, 3), min_length=1)  # residual blocks per stage
    stem: int = Field(default=64, gt=0)  # channels after the first convolution
    block: Literal["bottleneck", "basic"] = "bottleneck"  # `bottleneck` (1 × 1, 3 × 3, 1 × 1) or `basic` (two 3 × 3)
    norm: Literal["batch", "group"] = "batch"
    num_groups: int = Field(default=8, gt=0)  # groups of `norm="group"`; must divide every width
    channels: Literal[1, 3] = 3  # the grey image is repeated to this many; 3 is what pre-trained weights expect
    num_tokens: int = Field(default=1, gt=0)  # cells the last feature map is averaged to; a square number

    @model_validator(mode="after")
    def _check_sizes(self) -> ResNetSpec:
        if min(self.depths) < 1:
            raise ValueError(f"depths={self.depths} must be positive")
        if self.dim % 2 ** (len(self.depths) - 1):
            raise ValueError(f"dim={self.dim} must be divisible by 2 once per stage after the first")
        # a bottleneck is a quarter as wide inside
        inside = self.widths[0] // 4 if self.block == "bottleneck" else self.widths[0]
        if self.norm == "group" and any(width % self.num_groups for width in (self.stem, inside, *self.widths)):
            raise ValueError(f"num_groups={self.num_groups} must divide the widths {(self.stem, inside, *self.widths)}")
        if math.isqrt(self.num_tokens) ** 2 != self.num_tokens:
            raise ValueError(f"num_tokens={self.num_tokens} must be a square number")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after every stage."""
        last = len(self.depths) - 1
        return tuple(self.dim // 2 ** (last - stage) for stage in range(last + 1))

    def build(self, modality: Modality) -> Encoder:
        """Return a freshly initialised encoder for grey images ``[1, size, size]``; raise StudyError for others."""
        shape, takes = modality.sample_shape, f"grey images of {SMALLEST} or more pixels per side"
        fits = len(shape) == 3 and shape[0] == 1 and min(shape[1:]) >= SMALLEST
        self.require(fits, modality, takes, "choose another encoder, or larger images")
        return _made(self, "ResNet")


class ResNetMini(ResNetSpec):
    """Two stages of one basic block for two cores."""

    name: ClassVar[str] = "resnet-mini"
    dim: int = Field(default=64, gt=0)
    depths: tuple[int, ...] = Field(default=(1, 1), min_length=1)
    stem: int = Field(default=16, gt=0)
    block: Literal["bottleneck", "basic"] = "basic"
    norm: Literal["batch", "group"] = "group"
    channels: Literal[1, 3] = 1


class VisionTransformerSpec(EncoderSpec):
    """Settings of a Vision Transformer, whose tokens are ``dim`` wide."""

    num_layers: int = Field(gt=0)  # transformer blocks
    num_heads: int = Field(gt=0)  # attention heads; must divide `dim`
    mlp_ratio: int = Field(default=4, gt=0)  # width of the hidden layer of a block's MLP, in `dim`
    patch_size: int = Field(gt=0)  # side of a patch in pixels; must divide `size`
    size: int = Field(gt=0)  # side of the image in pixels; must be the modality's
    channels: Literal[1, 3] = 3  # the grey image is repeated to this many; 3 is what pre-trained weights expect
    tokens: Literal["grid", "cls", "all"] = "grid"  # `grid` the patch grid averaged to `num_tokens` cells; `cls`; `all`
    num_tokens: int = Field(default=4, gt=0)  # a square number no larger than the number of patches; only for `grid`
    dropout: float = Field(default=0.0, ge=0, lt=1)  # on embeddings, MLP and residual branches
    init_std: float = Field(default=0.02, gt=0)  # spread of the initial weights

    @model_validator(mode="after")
    def _check_divisions(self) -> VisionTransformerSpec:
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} must divide dim={self.dim}")
        if self.size % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size} must divide size={self.size}")
        if self.tokens == "grid" and (math.isqrt(self.num_tokens) ** 2 != self.num_tokens or self.cells > self.patches):
            raise ValueError(f"num_tokens={self.num_tokens} must be a square number up to {self.patches**2}")
        return self

    @property
    def patches(self) -> int:
        """Patches along a side of the image."""
        return self.size // self.patch_size

    @property
    def cells(self) -> int:
        """Tokens along a side of the image with ``tokens="grid"``."""
        return math.isqrt(self.num_tokens)

    def build(self, modality: Modality) -> Encoder:
        """Return a freshly initialised encoder for grey images ``[1, size, size]``; raise StudyError for others."""
        shape, hint = (1, self.size, self.size), "set the encoder's size to the modality's, or the other way round"
        self.require(modality.sample_shape == shape, modality, f"shape {shape}", hint)
        return _made(self, "VisionTransformer")


class DeiTTiny(VisionTransformerSpec):
    """DeiT-tiny at 224 pixels: 5.5 million parameters, for a GPU or patience."""

    name: ClassVar[str] = "deit-tiny"
    dim: int = Field(default=192, gt=0)
    num_layers: int = Field(default=12, gt=0)
    num_heads: int = Field(default=3, gt=0)
    patch_size: int = Field(default=16, gt=0)
    size: int = Field(default=224, gt=0)


class ViTMini(VisionTransformerSpec):
    """The same network for two cores.

    Two layers and 16-pixel patches learn most per CPU second on 800 images; 8-pixel patches and deeper ones lag behind.
    Its weights are drawn with a spread of 0.1: at a width of 64 the usual 0.02 learns markedly slower.
    """

    name: ClassVar[str] = "vit-mini"
    dim: int = Field(default=64, gt=0)
    num_layers: int = Field(default=3, gt=0)
    num_heads: int = Field(default=4, gt=0)
    patch_size: int = Field(default=16, gt=0)
    size: int = Field(default=64, gt=0)
    channels: Literal[1, 3] = 1
    init_std: float = Field(default=0.1, gt=0)


class TransformerSpec(EncoderSpec):
    """Settings of the Transformer."""

    name: ClassVar[str] = "transformer"
    dim: int = Field(default=64, gt=0)  # width of a token
    num_layers: int = Field(default=2, gt=0)
    num_heads: int = Field(default=4, gt=0)  # attention heads; must divide `dim`
    mlp_ratio: int = Field(default=2, gt=0)  # width of the hidden layer of a block's MLP, in `dim`
    num_tokens: int = Field(default=1, gt=0)  # equal spans of time that leave; must divide the number of hours
    dropout: float = Field(default=0.0, ge=0, lt=1)  # inside the blocks

    @model_validator(mode="after")
    def _check_heads(self) -> TransformerSpec:
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} must divide dim={self.dim}")
        return self

    def build(self, modality: Modality) -> Encoder:
        """Return a freshly initialised encoder for samples ``[hour, 2·channel]``; raise StudyError for others."""
        shape = modality.sample_shape
        takes = f"[hour, 2·channel], values then flags, with hours divisible by num_tokens={self.num_tokens}"
        fits = len(shape) == 2 and shape[1] % 2 == 0 and shape[0] % self.num_tokens == 0
        self.require(fits, modality, takes, "choose another encoder, or a num_tokens that divides the hours")
        return _made(self, "TimeTransformer", shape[0], shape[1] // 2)


class TextEncoderSpec(EncoderSpec):
    """Settings of a transformer over words."""

    name: ClassVar[str] = "text-mini"
    dim: int = Field(default=64, gt=0)
    depth: int = Field(default=1, gt=0)  # blocks
    num_heads: int = Field(default=4, gt=0)  # attention heads; must divide `dim`
    mlp_ratio: int = Field(default=2, gt=0)  # width of the feed-forward layer in multiples of `dim`
    dropout: float = Field(default=0.0, ge=0, lt=1)  # in every block

    def build(self, modality: Modality) -> Encoder:
        """Return a freshly initialised encoder; raise StudyError for what is not text."""
        self.require(len(modality.sample_shape) == 1, modality, "words")
        return _made(self, "TextEncoder", modality.sample_shape[0])


class BertSpec(TextEncoderSpec):
    """BERT-base: 12 blocks of width 768."""

    name: ClassVar[str] = "bert"
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: int = 4
    dropout: float = 0.1


_IMAGE = (ResNetSpec, ResNetMini, DeiTTiny, ViTMini)
ENCODERS: tuple[type[EncoderSpec], ...] = (LabsMLPSpec, Conv1dSpec, *_IMAGE, TransformerSpec, TextEncoderSpec, BertSpec)
