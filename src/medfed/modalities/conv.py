"""The signal encoder of FedKIM's Table 8: a one-dimensional CNN over the leads of an ECG.

Blocks of convolution, normalisation and GELU; every block shortens the signal, the width grows to ``dim``. The features
of the last block are averaged to ``num_tokens`` spans of time, and layer-normalised, so that a token's scale does not
depend on the depth.

The default normalisation is by group: it keeps no running statistics, so there is nothing to average between hospitals
whose recordings differ (Hsieh et al. 2020). ``norm="batch"`` is the usual one, with buffers.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.errors import StudyError
from medfed.modalities.base import Encoder, EncoderSpec, Modality


class Conv1dSpec(EncoderSpec):
    """Settings of the CNN.

    Attributes:
        dim: width of a token, and of the last block.
        num_blocks: convolution blocks.
        kernel_size: odd, in samples.
        stride: how much every block shortens the signal.
        norm: ``group`` or ``batch``.
        num_groups: groups of ``norm="group"``; must divide the width of every block.
        num_tokens: spans of time that leave.
        dropout: after every block.
    """

    name: ClassVar[str] = "conv1d"
    dim: int = Field(default=64, gt=0)
    num_blocks: int = Field(default=4, gt=0)
    kernel_size: int = Field(default=7, gt=0)
    stride: int = Field(default=3, gt=0)
    norm: Literal["group", "batch"] = "group"
    num_groups: int = Field(default=4, gt=0)
    num_tokens: int = Field(default=4, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

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
        if len(modality.sample_shape) != 2 or modality.sample_shape[1] < self.stride**self.num_blocks:
            raise StudyError(
                f"encoder {self.name!r} takes samples [lead, time] of {self.stride**self.num_blocks} or more "
                f"time steps, not of shape {modality.sample_shape}",
                where=f"modality {modality.name!r}",
                hint="choose fewer blocks, a smaller stride, or another encoder",
            )
        return Conv1d(self, modality.sample_shape[0])


class Conv1d(Encoder):
    """Convolution blocks over time."""

    def __init__(self, spec: Conv1dSpec, num_leads: int) -> None:
        super().__init__()
        self.dim, self.num_tokens = spec.dim, spec.num_tokens
        inputs = (num_leads, *spec.widths[:-1])
        self.blocks = nn.Sequential(
            *(_block(spec, narrow, wide) for narrow, wide in zip(inputs, spec.widths, strict=True))
        )
        self.norm = nn.LayerNorm(spec.dim)

    def forward(self, samples: Float[Tensor, "batch lead time"]) -> Float[Tensor, "batch tokens dim"]:
        """Encode normalised signals."""
        features: Tensor = self.blocks(samples)
        tokens: Tensor = self.norm(F.adaptive_avg_pool1d(features, self.num_tokens).transpose(1, 2))
        return tokens


def _block(spec: Conv1dSpec, narrow: int, wide: int) -> nn.Sequential:
    norm = nn.GroupNorm(spec.num_groups, wide) if spec.norm == "group" else nn.BatchNorm1d(wide)
    conv = nn.Conv1d(narrow, wide, spec.kernel_size, spec.stride, spec.kernel_size // 2, bias=False)
    return nn.Sequential(conv, norm, nn.GELU(), nn.Dropout(spec.dropout))


ENCODERS: tuple[type[EncoderSpec], ...] = (Conv1dSpec,)
