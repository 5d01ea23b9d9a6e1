"""Image encoders: ResNet-50 (Med-MMFL's image encoder for MIMIC-CXR) and a preset of the same code for two cores.

The residual network of He et al. 2016, in the form that strides in a bottleneck's 3 × 3 convolution. The features of
the last stage are averaged to ``num_tokens`` cells; one cell is the network's own global pooling.

Deviation: weights start from their seed, not from ImageNet, so no file is needed.
Deviation: ``resnet-mini`` normalises by group: running statistics of BatchNorm are what hospitals disagree on (Hsieh et
al. 2020), and there are none to average. ``norm="batch"`` is the usual one, ResNet-50's default.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.models.base import Encoder
from medfed.study.encoders import ResNetSpec


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
