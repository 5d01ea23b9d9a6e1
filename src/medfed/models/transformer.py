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

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medfed.models.base import Encoder
from medfed.study.encoders import TransformerSpec


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
