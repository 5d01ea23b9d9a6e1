"""RFNet: segmentation from any subset of MR sequences, fused region by region (Med-MMFL's model for BraTS).

Source: Ding et al., RFNet: Region-aware Fusion Network for Incomplete Multi-modal Brain Tumor Segmentation, ICCV 2021,
§3.2–3.4 and Fig. 2–3, with the widths of the authors' release.

Every sequence has an encoder (``encoders.<modality>``). One decoder fuses their features, guided by maps of the
probability of each region. One more decoder, shared by all sequences, must segment from each alone (training only). An
absent sequence is zero in every fusion and its encoder does not run, so nothing in its channel can matter. Instance
normalisation throughout, as in the paper: there are no batch statistics to average.

Shapes: ``sequence`` K sequences (four), ``class`` region classes (background included), ``i j k`` voxels.

Deviation: convolutions before a normalisation have no bias (the normalisation would take it out again).
Deviation: padding is with zeros where the release reflects, so that small patches work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.core.types import Batch
from medfed.models.base import FederatedModel
from medfed.study.models import PRESETS
from medfed.tasks.base import Task
from medfed.tasks.segmentation import Segmentation

TINY = 1e-7
Levels = list[Float[Tensor, "batch sequence _ _ _ _"]]
"""Features of every level, finest first; zeros for absent sequences."""
Features = Float[Tensor, "batch dim i j k"]
Maps = Float[Tensor, "batch class i j k"]
Any3d = Float[Tensor, "batch _ _ _ _"]
Pyramid = Sequence[Any3d]
"""Features from the finest level to the bottleneck; a level halves the grid and doubles the channels."""


class RFNet(FederatedModel):
    """The network for one segmentation task, which names sequences and classes.

    With ``drop_sequences`` training fuses a random subset of the sequences that are there.
    """

    def __init__(self, task: Segmentation, preset: Literal["small", "full"], drop_sequences: bool) -> None:
        super().__init__()
        width, num_levels, hidden = PRESETS[preset]
        self.sequences, self.drop_sequences = task.modalities, drop_sequences
        self.encoders = nn.ModuleDict({name: SequenceEncoder(width, num_levels) for name in task.modalities})
        self.fused = FusedDecoder(width, num_levels, hidden, len(task.modalities), task.num_classes)
        self.single = SingleDecoder(width, num_levels, task.num_classes)

    def forward(self, task: Task, batch: Batch) -> Float[Tensor, "batch output class i j k"]:
        """Return log-probabilities of the classes.

        In eval mode there is one output. In training the region maps of every level follow, coarsest first, and each
        sequence's segmentation alone, zeros where it is absent.
        """
        levels, present = self._encode(batch), torch.stack([batch.present[name] for name in self.sequences], 1)
        if not self.training:
            return cast(Tensor, self.fused(levels)[0][:, None])
        kept = random_subsets(present) if self.drop_sequences else present
        fused = self.fused([features * kept[:, :, None, None, None, None] for features in levels])
        rows = present.flatten()
        alone = self.single([features.flatten(0, 1)[rows] for features in levels]).log_softmax(1)
        by_sequence = _spread(rows, alone, alone).reshape(*present.shape, *alone.shape[1:])
        return torch.cat((torch.stack(fused, 1), by_sequence), 1)

    def representations(self, task: Task, batch: Batch) -> dict[str, Float[Tensor, "batch dim"]]:
        """Return the bottleneck of every sequence, averaged over each octant of the volume; zeros where absent.

        Octants, because instance normalisation leaves little in the mean over the whole volume.
        """
        bottleneck = self._encode(batch)[-1]
        pooled = F.adaptive_avg_pool3d(bottleneck.flatten(0, 1), 2).reshape(*bottleneck.shape[:2], -1)
        return {name: pooled[:, number] for number, name in enumerate(self.sequences)}

    def _encode(self, batch: Batch) -> Levels:
        """Run every encoder on the examples that have its sequence."""
        by_sequence = []
        for name in self.sequences:
            there = batch.present[name]
            pyramid = self.encoders[name](batch.inputs[name][there].float()[:, None]) if bool(there.any()) else None
            by_sequence.append((there, pyramid))
        shapes = next((pyramid for _, pyramid in by_sequence if pyramid is not None), None)
        if shapes is None:
            raise ValueError("a batch without any sequence cannot be segmented")
        return [
            torch.stack([_spread(there, pyramid and pyramid[level], like) for there, pyramid in by_sequence], 1)
            for level, like in enumerate(shapes)
        ]


class FusedDecoder(nn.Module):
    """From the bottleneck up: predict region maps, fuse by them, join with what came from below (Fig. 2)."""

    def __init__(self, width: int, num_levels: int, hidden: int, num_sequences: int, num_classes: int) -> None:
        super().__init__()
        widths, counts = [width * 2**level for level in range(num_levels)], (num_sequences, num_classes)
        self.maps = nn.ModuleList(RegionMaps(channels, *counts, last=channels == widths[-1]) for channels in widths)
        self.fusions = nn.ModuleList(RegionFusion(channels, *counts, hidden) for channels in widths)
        self.up = nn.ModuleList(UpBlock(channels) for channels in widths[:-1])
        self.classify = nn.Conv3d(width, num_classes, 1)

    def forward(self, levels: Levels) -> list[Float[Tensor, "batch class _ _ _"]]:
        """Return the log-probabilities on the finest grid, then the logarithms of every level's region maps."""
        maps = self.maps[-1](levels[-1], None)
        x = self.fusions[-1](levels[-1], maps.detach())
        by_level = [maps]
        for level in reversed(range(len(self.up))):
            up = cast(UpBlock, self.up[level])
            below = up.widen(x, levels[level].shape[3:])
            maps = self.maps[level](levels[level], below)
            x = up(below, self.fusions[level](levels[level], maps.detach()))
            by_level.append(maps)
        grid = levels[0].shape[3:]
        return [self.classify(x).log_softmax(1), *((enlarge(maps, grid) + TINY).log() for maps in by_level)]


class SequenceEncoder(nn.Module):
    """A residual stage per level; every stage but the first halves the grid."""

    def __init__(self, width: int, num_levels: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(num_levels)]
        self.enter = nn.ModuleList([conv(1, width), *(conv(have, 2 * have, stride=2) for have in widths[:-1])])
        self.stay = nn.ModuleList(nn.Sequential(conv(want, want), conv(want, want)) for want in widths)

    def forward(self, volume: Float[Tensor, "batch 1 i j k"]) -> list[Any3d]:
        """Return the features of every level, finest first."""
        levels, x = [], volume
        for enter, stay in zip(self.enter, self.stay, strict=True):
            x = enter(x)
            x = x + stay(x)
            levels.append(x)
        return levels


class SingleDecoder(nn.Module):
    """Segments from one sequence alone; one set of weights for all sequences (the paper's regulariser, §3.4)."""

    def __init__(self, width: int, num_levels: int, num_classes: int) -> None:
        super().__init__()
        self.up = nn.ModuleList(UpBlock(width * 2**level) for level in range(num_levels - 1))
        self.classify = nn.Conv3d(width, num_classes, 1)

    def forward(self, levels: Pyramid) -> Maps:
        """Return logits on the finest grid."""
        x = levels[-1]
        for level in reversed(range(len(self.up))):
            up = cast(UpBlock, self.up[level])
            x = up(up.widen(x, levels[level].shape[2:]), levels[level])
        return cast(Tensor, self.classify(x))


class UpBlock(nn.Module):
    """Double the grid, join the skip connection, convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = conv(2 * channels, channels)
        self.join = nn.Sequential(conv(2 * channels, channels), conv(channels, channels, 1))

    def widen(self, below: Any3d, grid: torch.Size) -> Any3d:
        """Return the features of the coarser level on ``grid``."""
        return cast(Tensor, self.narrow(enlarge(below, grid)))

    def forward(self, widened: Features, skip: Features) -> Features:
        """Join the widened features with those of this level."""
        return cast(Tensor, self.join(torch.cat((widened, skip), 1)))


class RegionMaps(nn.Module):
    """Predict how probable each region is at each voxel, to guide the fusion at one level (the paper's PRM)."""

    def __init__(self, channels: int, num_sequences: int, num_classes: int, *, last: bool) -> None:
        super().__init__()
        self.embed = squeeze(num_sequences * channels, max(channels // 4, 1), channels)
        squeezed = conv(channels if last else 2 * channels, 16, 1)
        self.classify = nn.Sequential(squeezed, nn.Conv3d(16, num_classes, 1), nn.Softmax(1))

    def forward(self, features: Float[Tensor, "batch sequence dim i j k"], below: Features | None) -> Maps:
        """Return probabilities from this level's features and, but at the bottleneck, the decoder's."""
        embedded = self.embed(features.flatten(1, 2))
        return cast(Tensor, self.classify(embedded if below is None else torch.cat((below, embedded), 1)))


class RegionFusion(nn.Module):
    """Fuse the sequences by region: each region weighs the sequences by their features inside it (Eq. 1–4)."""

    def __init__(self, channels: int, num_sequences: int, num_classes: int, hidden: int) -> None:
        super().__init__()
        half, width = max(channels // 2, 1), num_sequences * channels + 1
        self.weigh = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, num_sequences))
            for _ in range(num_classes)
        )
        self.fuse = nn.Sequential(squeeze(num_classes * channels, channels, half))
        self.shortcut = nn.Sequential(squeeze(num_sequences * channels, channels, channels - half))

    def forward(self, features: Float[Tensor, "batch sequence dim i j k"], maps: Maps) -> Features:
        """Return the fused features; those of absent sequences are zero."""
        size = maps[0, 0].numel()
        share = maps.mean((2, 3, 4)) + 1e-7
        inside = torch.einsum("nsdv,ncv->ncsd", features.flatten(3), maps.flatten(2)) / size / share[:, :, None, None]
        described = [
            torch.cat((inside[:, region].flatten(1), share[:, region, None]), 1) for region in range(len(self.weigh))
        ]
        weights = torch.stack([weigh(one).sigmoid() for one, weigh in zip(described, self.weigh, strict=True)], 1)
        regions = torch.einsum("nsdv,ncs,ncv->ncdv", features.flatten(3), weights, maps.flatten(2))
        fused = self.fuse(regions.reshape(len(maps), -1, *maps.shape[2:]))
        return torch.cat((fused, self.shortcut(features.flatten(1, 2))), 1)


class Conv(nn.Conv3d):
    """A 3-D convolution, on the CPU with channels last: with few channels its backward takes half the time."""

    def forward(self, x: Any3d) -> Any3d:
        """Convolve."""
        if x.device.type == "cpu" and max(self.kernel_size) > 1:
            x = x.contiguous(memory_format=torch.channels_last_3d)
        return super().forward(x)


def conv(channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return convolution, instance normalisation (no batch statistics: nothing to federate) and leaky ReLU."""
    convolution = Conv(channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.InstanceNorm3d(out_channels), nn.LeakyReLU(0.2))


def squeeze(channels: int, middle: int, out_channels: int) -> nn.Sequential:
    """Return a bottleneck: 1³, 3³ and 1³ convolutions."""
    return nn.Sequential(conv(channels, middle, 1), conv(middle, middle), conv(middle, out_channels, 1))


def enlarge(x: Float[Tensor, "batch dim _ _ _"], grid: torch.Size) -> Float[Tensor, "batch dim i j k"]:
    """Interpolate ``x`` to ``grid``, corners on corners."""
    return F.interpolate(x, tuple(grid), mode="trilinear", align_corners=True)


def random_subsets(present: Bool[Tensor, "batch sequence"]) -> Bool[Tensor, "batch sequence"]:
    """Draw a subset of what is there, never empty, so that every combination is trained for (the paper)."""
    kept = present & (torch.rand(present.shape) < 0.5).to(present.device)
    return torch.where(kept.any(1, keepdim=True), kept, present)


def _spread(
    there: Bool[Tensor, " batch"], values: Float[Tensor, " _ *sample"] | None, like: Float[Tensor, " _ *sample"]
) -> Float[Tensor, "batch *sample"]:
    """Put the rows of ``values`` where ``there`` is true; zeros elsewhere."""
    spread = like.new_zeros(len(there), *like.shape[1:])
    return spread if values is None else spread.index_put((there.nonzero()[:, 0],), values)
