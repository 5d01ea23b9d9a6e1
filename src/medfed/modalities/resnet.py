"""Image encoders: ResNet-50 (Med-MMFL's image encoder for MIMIC-CXR) and a preset of the same code for two cores.

The residual network of He et al. 2016, in the form that strides in a bottleneck's 3 × 3 convolution. The features of
the last stage are averaged to ``num_tokens`` cells; one cell is the network's own global pooling.

Deviation: weights start from their seed, not from ImageNet, so no file is needed.
Deviation: ``resnet-mini`` normalises by group: running statistics of BatchNorm are what hospitals disagree on (Hsieh et
al. 2020), and there are none to average. ``norm="batch"`` is the usual one, ResNet-50's default.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.errors import StudyError
from medfed.modalities.base import Encoder, EncoderSpec, Modality

SMALLEST = 32
"""Pixels per side that the strides of four stages need."""


class ResNetSpec(EncoderSpec):
    """ResNet-50.

    Attributes:
        dim: channels of the last stage, and width of a token; every stage before has half of the next.
        depths: residual blocks per stage.
        stem: channels after the first convolution.
        block: ``bottleneck`` (1 × 1, 3 × 3, 1 × 1) or ``basic`` (two 3 × 3).
        norm: ``batch`` or ``group``.
        num_groups: groups of ``norm="group"``; must divide every width.
        channels: the grey image is repeated to this many channels (3 is what pre-trained weights expect).
        num_tokens: cells the last feature map is averaged to; a square number.
    """

    name: ClassVar[str] = "resnet"
    dim: int = Field(default=2048, gt=0)
    depths: tuple[int, ...] = Field(default=(3, 4, 6, 3), min_length=1)
    stem: int = Field(default=64, gt=0)
    block: Literal["bottleneck", "basic"] = "bottleneck"
    norm: Literal["batch", "group"] = "batch"
    num_groups: int = Field(default=8, gt=0)
    channels: Literal[1, 3] = 3
    num_tokens: int = Field(default=1, gt=0)

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
        shape = modality.sample_shape
        if len(shape) != 3 or shape[0] != 1 or min(shape[1:]) < SMALLEST:
            raise StudyError(
                f"encoder {self.name!r} takes grey images of {SMALLEST} or more pixels per side, not shape {shape}",
                where=f"modality {modality.name!r}",
                hint="choose another encoder, or larger images",
            )
        return ResNet(self)


class ResNetMini(ResNetSpec):
    """Two stages of one basic block for two cores."""

    name: ClassVar[str] = "resnet-mini"
    dim: int = Field(default=64, gt=0)
    depths: tuple[int, ...] = Field(default=(1, 1), min_length=1)
    stem: int = Field(default=16, gt=0)
    block: Literal["bottleneck", "basic"] = "basic"
    norm: Literal["batch", "group"] = "group"
    channels: Literal[1, 3] = 1


class ResNet(Encoder):
    """A ResNet on grey images."""

    def __init__(self, spec: ResNetSpec) -> None:
        from transformers import ResNetConfig, ResNetModel  # noqa: PLC0415 (large; loaded where it is used)

        super().__init__()
        self.dim, self.channels, self.cells = spec.dim, spec.channels, math.isqrt(spec.num_tokens)
        config = ResNetConfig(
            num_channels=spec.channels,
            embedding_size=spec.stem,
            hidden_sizes=list(spec.widths),
            depths=list(spec.depths),
            layer_type=spec.block,
        )
        self.resnet: nn.Module = ResNetModel(config)
        if spec.norm == "group":
            _normalise_by_group(self.resnet, spec.num_groups)

    def forward(self, samples: Float[Tensor, "batch 1 row column"]) -> Float[Tensor, "batch tokens dim"]:
        """Encode normalised grey images."""
        features: Tensor = self.resnet(samples.expand(-1, self.channels, -1, -1)).last_hidden_state
        return F.adaptive_avg_pool2d(features, self.cells).flatten(2).transpose(1, 2)


def _normalise_by_group(module: nn.Module, num_groups: int) -> None:
    """Put a GroupNorm in the place of every BatchNorm below ``module``."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(num_groups, child.num_features))
        else:
            _normalise_by_group(child, num_groups)


ENCODERS: tuple[type[EncoderSpec], ...] = (ResNetSpec, ResNetMini)
