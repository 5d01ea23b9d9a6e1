"""The signal encoder of FedKIM's Table 8: a one-dimensional CNN over the leads of an ECG.

Blocks of convolution, normalisation and GELU; every block shortens the signal, the width grows to ``dim``. The features
of the last block are averaged to ``num_tokens`` spans of time, and layer-normalised, so that a token's scale does not
depend on the depth.

The default normalisation is by group: it keeps no running statistics, so there is nothing to average between hospitals
whose recordings differ (Hsieh et al. 2020). ``norm="batch"`` is the usual one, with buffers.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.models.base import Encoder
from medfed.study.encoders import Conv1dSpec


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
