"""The blocks of RFNet: convolution, encoder of one sequence, decoder, region maps, region-aware fusion.

Source: Ding et al., RFNet: Region-aware Fusion Network for Incomplete Multi-modal Brain Tumor Segmentation, ICCV 2021,
§3.2–3.3 and Fig. 2–3, with the widths of the authors' release.
Shapes: ``sequence`` K sequences (four), ``class`` region classes (background included), ``i j k`` voxels.
Deviation: convolutions before a normalisation have no bias (the normalisation would take it out again).
Deviation: padding is with zeros where the release reflects, so that small patches work.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Pyramid = Sequence[Float[Tensor, "batch _ _ _ _"]]
"""Features from the finest level to the bottleneck; a level halves the grid and doubles the channels."""


class Conv(nn.Conv3d):
    """A 3-D convolution, on the CPU with channels last: with few channels its backward takes half the time."""

    def forward(self, x: Float[Tensor, "batch _ _ _ _"]) -> Float[Tensor, "batch _ _ _ _"]:
        """Convolve."""
        if x.device.type == "cpu" and max(self.kernel_size) > 1:
            x = x.contiguous(memory_format=torch.channels_last_3d)
        return super().forward(x)


def conv(channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return convolution, instance normalisation (no batch statistics: nothing to federate) and leaky ReLU."""
    return nn.Sequential(
        Conv(channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.InstanceNorm3d(out_channels),
        nn.LeakyReLU(0.2),
    )


def squeeze(channels: int, middle: int, out_channels: int) -> nn.Sequential:
    """Return a bottleneck: 1³, 3³ and 1³ convolutions."""
    return nn.Sequential(conv(channels, middle, 1), conv(middle, middle), conv(middle, out_channels, 1))


class SequenceEncoder(nn.Module):
    """A residual stage per level; every stage but the first halves the grid."""

    def __init__(self, width: int, num_levels: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(num_levels)]
        ins = [1, *widths[:-1]]
        self.enter = nn.ModuleList(
            conv(have, want, stride=1 if level == 0 else 2)
            for level, (have, want) in enumerate(zip(ins, widths, strict=True))
        )
        self.stay = nn.ModuleList(nn.Sequential(conv(want, want), conv(want, want)) for want in widths)

    def forward(self, volume: Float[Tensor, "batch 1 i j k"]) -> list[Float[Tensor, "batch _ _ _ _"]]:
        """Return the features of every level, finest first."""
        levels, x = [], volume
        for enter, stay in zip(self.enter, self.stay, strict=True):
            x = enter(x)
            x = x + stay(x)
            levels.append(x)
        return levels


class UpBlock(nn.Module):
    """Double the grid, join the skip connection, convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = conv(2 * channels, channels)
        self.join = nn.Sequential(conv(2 * channels, channels), conv(channels, channels, 1))

    def widen(self, below: Float[Tensor, "batch _ _ _ _"], grid: torch.Size) -> Float[Tensor, "batch _ _ _ _"]:
        """Return the features of the coarser level on ``grid``."""
        widened: Tensor = self.narrow(enlarge(below, grid))
        return widened

    def forward(
        self, widened: Float[Tensor, "batch dim i j k"], skip: Float[Tensor, "batch dim i j k"]
    ) -> Float[Tensor, "batch dim i j k"]:
        """Join the widened features with those of this level."""
        joined: Tensor = self.join(torch.cat((widened, skip), 1))
        return joined


class SingleDecoder(nn.Module):
    """Segments from one sequence alone; one set of weights for all sequences (the paper's regulariser, §3.4)."""

    def __init__(self, width: int, num_levels: int, num_classes: int) -> None:
        super().__init__()
        self.up = nn.ModuleList(UpBlock(width * 2**level) for level in range(num_levels - 1))
        self.classify = nn.Conv3d(width, num_classes, 1)

    def forward(self, levels: Pyramid) -> Float[Tensor, "batch class i j k"]:
        """Return logits on the finest grid."""
        x = levels[-1]
        for level in reversed(range(len(self.up))):
            block = self.up[level]
            assert isinstance(block, UpBlock)  # noqa: S101  (ModuleList forgets the type)
            x = block(block.widen(x, levels[level].shape[2:]), levels[level])
        logits: Tensor = self.classify(x)
        return logits


class RegionMaps(nn.Module):
    """Predict how probable each region is at each voxel, to guide the fusion at one level (the paper's PRM)."""

    def __init__(self, channels: int, num_sequences: int, num_classes: int, *, last: bool) -> None:
        super().__init__()
        self.embed = squeeze(num_sequences * channels, max(channels // 4, 1), channels)
        self.classify = nn.Sequential(
            conv(channels if last else 2 * channels, 16, 1), nn.Conv3d(16, num_classes, 1), nn.Softmax(1)
        )

    def forward(
        self, features: Float[Tensor, "batch sequence dim i j k"], below: Float[Tensor, "batch dim i j k"] | None
    ) -> Float[Tensor, "batch class i j k"]:
        """Return probabilities from this level's features and, but at the bottleneck, the decoder's."""
        embedded = self.embed(features.flatten(1, 2))
        maps: Tensor = self.classify(embedded if below is None else torch.cat((below, embedded), 1))
        return maps


class RegionFusion(nn.Module):
    """Fuse the sequences by region: each region weighs the sequences by their features inside it (Eq. 1–4)."""

    def __init__(self, channels: int, num_sequences: int, num_classes: int, hidden: int) -> None:
        super().__init__()
        half = max(channels // 2, 1)
        self.weigh = nn.ModuleList(
            nn.Sequential(
                nn.Linear(num_sequences * channels + 1, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, num_sequences)
            )
            for _ in range(num_classes)
        )
        self.fuse = nn.Sequential(squeeze(num_classes * channels, channels, half))
        self.shortcut = nn.Sequential(squeeze(num_sequences * channels, channels, channels - half))

    def forward(
        self, features: Float[Tensor, "batch sequence dim i j k"], maps: Float[Tensor, "batch class i j k"]
    ) -> Float[Tensor, "batch dim i j k"]:
        """Return the fused features; those of absent sequences are zero."""
        size = maps[0, 0].numel()
        share = maps.mean((2, 3, 4)) + 1e-7
        inside = torch.einsum("nsdv,ncv->ncsd", features.flatten(3), maps.flatten(2)) / size / share[:, :, None, None]
        weights = torch.stack(
            [
                weigh(torch.cat((inside[:, region].flatten(1), share[:, region, None]), 1)).sigmoid()
                for region, weigh in enumerate(self.weigh)
            ],
            1,
        )
        regions = torch.einsum("nsdv,ncs,ncv->ncdv", features.flatten(3), weights, maps.flatten(2))
        fused = self.fuse(regions.reshape(len(maps), -1, *maps.shape[2:]))
        return torch.cat((fused, self.shortcut(features.flatten(1, 2))), 1)


def enlarge(x: Float[Tensor, "batch dim _ _ _"], grid: torch.Size) -> Float[Tensor, "batch dim i j k"]:
    """Interpolate ``x`` to ``grid``, corners on corners."""
    return F.interpolate(x, tuple(grid), mode="trilinear", align_corners=True)
