"""RFNet: segmentation from any subset of MR sequences, fused region by region (Med-MMFL's model for BraTS).

Source: Ding et al., RFNet: Region-aware Fusion Network for Incomplete Multi-modal Brain Tumor Segmentation, ICCV 2021.

Every sequence has an encoder (``encoders.<modality>``). One decoder fuses their features, guided by maps of the
probability of each region. One more decoder, shared by all sequences, must segment from each alone (training only). An
absent sequence is zero in every fusion and its encoder does not run, so nothing in its channel can matter. Instance
normalisation throughout, as in the paper: there are no batch statistics to average.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.core.types import Batch
from medfed.models.base import FederatedModel
from medfed.models.rfnet_blocks import RegionFusion, RegionMaps, SequenceEncoder, SingleDecoder, UpBlock, enlarge
from medfed.study.models import PRESETS
from medfed.tasks.base import Task
from medfed.tasks.segmentation import Segmentation

TINY = 1e-7
Levels = list[Float[Tensor, "batch sequence _ _ _ _"]]
"""Features of every level, finest first; zeros for absent sequences."""


class FusedDecoder(nn.Module):
    """From the bottleneck up: predict region maps, fuse by them, join with what came from below (Fig. 2)."""

    def __init__(self, width: int, num_levels: int, hidden: int, num_sequences: int, num_classes: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(num_levels)]
        self.maps = nn.ModuleList(
            RegionMaps(channels, num_sequences, num_classes, last=channels == widths[-1]) for channels in widths
        )
        self.fusions = nn.ModuleList(RegionFusion(channels, num_sequences, num_classes, hidden) for channels in widths)
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


class RFNet(FederatedModel):
    """The network for one segmentation task.

    Args:
        task: names sequences and classes.
        preset: key of :data:`PRESETS`.
        drop_sequences: in training, fuse a random subset of the sequences that are there.
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
        levels, present = self._encode(batch), self._present(batch)
        if not self.training:
            prediction: Tensor = self.fused(levels)[0][:, None]
            return prediction
        kept = self._drawn(present) if self.drop_sequences else present
        fused = self.fused([features * kept[:, :, None, None, None, None] for features in levels])
        return torch.cat((torch.stack(fused, 1), self._alone(levels, present)), 1)

    def representations(self, task: Task, batch: Batch) -> dict[str, Float[Tensor, "batch dim"]]:
        """Return the bottleneck of every sequence, averaged over each octant of the volume; zeros where absent.

        Octants, because instance normalisation leaves little in the mean over the whole volume.
        """
        bottleneck = self._encode(batch)[-1]
        pooled = F.adaptive_avg_pool3d(bottleneck.flatten(0, 1), 2).reshape(*bottleneck.shape[:2], -1)
        return {name: pooled[:, number] for number, name in enumerate(self.sequences)}

    def _present(self, batch: Batch) -> Bool[Tensor, "batch sequence"]:
        return torch.stack([batch.present[name] for name in self.sequences], 1)

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

    def _drawn(self, present: Bool[Tensor, "batch sequence"]) -> Bool[Tensor, "batch sequence"]:
        """Draw a random subset of what is there, never empty, so that every combination is trained for (the paper)."""
        kept = present & (torch.rand(present.shape) < 0.5).to(present.device)
        return torch.where(kept.any(1, keepdim=True), kept, present)

    def _alone(
        self, levels: Levels, present: Bool[Tensor, "batch sequence"]
    ) -> Float[Tensor, "batch sequence class i j k"]:
        rows = present.flatten()
        alone = self.single([features.flatten(0, 1)[rows] for features in levels]).log_softmax(1)
        return _spread(rows, alone, alone).reshape(*present.shape, *alone.shape[1:])


def _spread(
    there: Bool[Tensor, " batch"], values: Float[Tensor, " _ *sample"] | None, like: Float[Tensor, " _ *sample"]
) -> Float[Tensor, "batch *sample"]:
    """Put the rows of ``values`` where ``there`` is true; zeros elsewhere."""
    spread = like.new_zeros(len(there), *like.shape[1:])
    return spread if values is None else spread.index_put((there.nonzero()[:, 0],), values)
