"""The time-series encoder of FedKIM's Table 8: a Transformer over the hours of an intensive-care stay.

A sample is ``[hour, 2·channel]``: normalised values, then flags that say which of them were measured. Attention runs
over the hours of one stay and skips hours in which nothing was measured. A learned *stay* token is always attended to,
so a stay without any measurement has an encoding as well (and no NaN). Every token that leaves is the mean of the stay
token and of the measured hours of its span.

Deviation: the released code lays the patients of a batch along the attention axis; here a patient's encoding depends on
    that
patient alone.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from medfed.errors import StudyError
from medfed.modalities.base import Encoder, EncoderSpec, Modality


class TransformerSpec(EncoderSpec):
    """Settings of the Transformer.

    Attributes:
        dim: width of a token.
        num_layers: transformer blocks.
        num_heads: attention heads; must divide ``dim``.
        mlp_ratio: width of the hidden layer of a block's MLP, in ``dim``.
        num_tokens: equal spans of time that leave; must divide the number of hours.
        dropout: inside the blocks.
    """

    name: ClassVar[str] = "transformer"
    dim: int = Field(default=64, gt=0)
    num_layers: int = Field(default=2, gt=0)
    num_heads: int = Field(default=4, gt=0)
    mlp_ratio: int = Field(default=2, gt=0)
    num_tokens: int = Field(default=1, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_heads(self) -> TransformerSpec:
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} must divide dim={self.dim}")
        return self

    def build(self, modality: Modality) -> Encoder:
        """Return a freshly initialised encoder for samples ``[hour, 2·channel]``; raise StudyError for others."""
        shape = modality.sample_shape
        if len(shape) != 2 or shape[1] % 2 or shape[0] % self.num_tokens:
            raise StudyError(
                f"encoder {self.name!r} takes samples [hour, 2·channel], values then flags, "
                f"with hours divisible by num_tokens={self.num_tokens}; not of shape {shape}",
                where=f"modality {modality.name!r}",
                hint="choose another encoder, or a num_tokens that divides the hours",
            )
        return TimeTransformer(self, num_hours=shape[0], num_channels=shape[1] // 2)


class TimeTransformer(Encoder):
    """Attention over the hours of a stay."""

    def __init__(self, spec: TransformerSpec, num_hours: int, num_channels: int) -> None:
        super().__init__()
        self.dim, self.num_tokens, self.num_channels = spec.dim, spec.num_tokens, num_channels
        self.embed = nn.Linear(2 * num_channels, spec.dim)
        self.positions = nn.Parameter(0.02 * torch.randn(num_hours, spec.dim))
        self.stay = nn.Parameter(0.02 * torch.randn(spec.dim))
        layer = nn.TransformerEncoderLayer(
            spec.dim,
            spec.num_heads,
            spec.mlp_ratio * spec.dim,
            spec.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, spec.num_layers, norm=nn.LayerNorm(spec.dim), enable_nested_tensor=False
        )

    def forward(self, samples: Float[Tensor, "batch hour values_and_flags"]) -> Float[Tensor, "batch tokens dim"]:
        """Encode normalised stays."""
        measured = samples[:, :, self.num_channels :].amax(2) > 0
        hours = self.embed(samples) + self.positions
        sequence = torch.cat([self.stay.expand(len(samples), 1, -1), hours], 1)
        attended = torch.cat([measured.new_ones(len(samples), 1), measured], 1)
        encoded: Tensor = self.layers(sequence, src_key_padding_mask=~attended)
        return self._pool(encoded[:, :1], encoded[:, 1:], measured)

    def _pool(
        self,
        stay: Float[Tensor, "batch 1 dim"],
        hours: Float[Tensor, "batch hour dim"],
        measured: Bool[Tensor, "batch hour"],
    ) -> Float[Tensor, "batch tokens dim"]:
        kept = measured.reshape(len(hours), self.num_tokens, -1, 1).to(hours.dtype)
        total = (hours.reshape(*kept.shape[:3], self.dim) * kept).sum(2)
        return (stay + total) / (1 + kept.sum(2))


ENCODERS: tuple[type[EncoderSpec], ...] = (TransformerSpec,)
