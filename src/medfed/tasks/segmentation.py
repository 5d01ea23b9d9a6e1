"""Segmentation of a volume: a class per voxel, scored by regions that are unions of classes.

Clients train on random crops. A model is scored on whole volumes, by windows that overlap and that do not depend on the
truth. The loss is RFNet's: weighted cross-entropy plus Dice, over the output and all auxiliary ones (Ding et al. 2021,
§3.4). Med-MMFL segments tumours in four MR sequences: whole tumour, tumour core, enhancing tumour.

Scores follow Maier-Hein, Reinke et al., Metrics reloaded, Nature Methods 21:195 (2024): Dice, IoU, and the 95th
percentile of surface distances (HD95).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.core.errors import StudyError
from medfed.core.types import Batch
from medfed.datasets.decoded import Decoded
from medfed.tasks.base import Json, TaskSet, TrainableTask

__all__ = ["Segmentation"]

AT_ONCE = 4
"""Windows per forward."""

Mask = Bool[np.ndarray, "i j k"]
Classes = Shaped[Tensor, "i j k"]
Outputs = Float[Tensor, "batch output class i j k"]
Truth = Float[Tensor, "batch 1 class i j k"]


class Segmentation(TrainableTask):
    """A class per voxel; ``answers[i]`` names class i, and class 0 is the background. The mask modality is the truth.

    Attributes:
        strata: nullable index columns that stratify splits and partitions, as ``target`` does.
        regions: region → its classes, in the order of tables.
        patch: voxels per side of a training crop and of a window; a shorter side of the grid is taken whole.
        overlap: share of a window that the next one sees again.
    """

    kind: ClassVar[str] = "segmentation"
    metric_kind: ClassVar[str] = "segmentation"

    truth: str
    strata: tuple[str, ...] = ()
    regions: dict[str, tuple[int, ...]]
    patch: int = Field(default=24, ge=16)
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The target and the strata."""
        return (self.target, *self.strata)

    @property
    def num_classes(self) -> int:
        """Classes of a voxel, background included."""
        return len(self.answers)

    def targets(self, data: Decoded) -> Shaped[np.ndarray, "example i j k"]:
        """The masks themselves, not a copy; raise StudyError if masks and volumes have different grids."""
        masks: np.ndarray = data.truths[self.truth]
        for name in self.modalities:
            if (grid := data.samples[name].shape[1:]) != masks.shape[1:]:
                what = f"{name} has the grid {grid}, {self.truth} {masks.shape[1:]}"
                hint = f"give {', '.join((*self.modalities, self.truth))} one size"
                raise StudyError(what, where=f"modalities.{name}.size", hint=hint)
        return masks

    def usable(self, data: Decoded) -> Bool[np.ndarray, " example"]:
        """Which examples have at least one sequence; all have a mask."""
        return np.asarray(np.any([data.present[name] for name in self.modalities], axis=0))

    def counts(self, examples: TaskSet) -> dict[str, int]:
        """How many examples there are, by the values of the strata."""
        rows = examples.data.index.select(self.strata)[examples.rows.tolist()].iter_rows(named=True)
        words = (", ".join(f"{name} {'?' if value is None else value}" for name, value in row.items()) for row in rows)
        return dict(sorted(Counter(words).items()))

    def augment(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Cut one random window out of every example, and mirror it along random axes."""
        grid = tuple(batch.target.shape[1:])
        room = [max(side - self.patch, 0) + 1 for side in grid]
        starts = [rng.integers(room) for _ in range(len(batch))]
        places = [tuple(slice(begin, begin + self.patch) for begin in start) for start in starts]
        flips = [np.flatnonzero(axes).tolist() for axes in rng.random((len(batch), 3)) < 0.5]

        def cut(values: Shaped[Tensor, "batch _ _ _"]) -> Shaped[Tensor, "batch _ _ _"]:
            parts = zip(values, places, flips, strict=True)
            return torch.stack([volume[place].flip(axes) for volume, place, axes in parts])

        inputs = {name: cut(values) for name, values in batch.inputs.items()}
        return Batch(inputs, batch.present, cut(batch.target), batch.examples, batch.questions)

    def loss(self, outputs: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Sum over the outputs of the mean over examples of weighted cross-entropy plus Dice loss.

        Outputs are log-probabilities (or logits); the first is the prediction, the others are auxiliary. One that an
        example cannot have (its sequence is absent) is zero throughout and does not count.
        """
        outputs = outputs.float()  # sums over voxels, also under autocast
        truth = F.one_hot(batch.target.long(), self.num_classes).movedim(-1, 1).float()
        given = outputs.detach().flatten(2).any(2)
        losses = _cross_entropy(outputs, truth[:, None]) + _dice_loss(outputs, truth[:, None])
        return (torch.where(given, losses, 0.0).sum(0) / given.sum(0).clamp(min=1)).sum()

    def respond(self, model: nn.Module, examples: TaskSet) -> list[Json]:
        """Segment every whole volume and return Dice, IoU and HD95 by region, see :func:`region_scores`."""
        device = next(model.parameters()).device
        volumes = (batch.to(device) for batch in examples.batches(1))
        return [self._compared(one.target[0].cpu(), self.segment(model, one).cpu()) for one in volumes]

    def truths(self, examples: TaskSet) -> list[Json]:
        """Return the voxels of every region, and the grid's diagonal, the worst distance there can be."""
        diagonal = float(np.linalg.norm(np.multiply(examples.targets.shape[1:], self.spacing_mm)))
        regions = map(self.region_masks, examples.targets)
        sizes = ({name: int(region.sum()) for name, region in masks.items()} for masks in regions)
        return [{"voxels": voxels, "diagonal_mm": diagonal} for voxels in sizes]

    def segment(self, model: nn.Module, volume: Batch) -> Int[Tensor, "i j k"]:
        """Return the most probable class of every voxel of one whole volume."""
        mean = sliding_window(lambda windows: model(self, windows)[:, 0].softmax(1), volume, self.patch, self.overlap)
        return mean.argmax(0)

    def region_masks(self, classes: Classes) -> dict[str, Mask]:
        """Return each region as a mask."""
        return {name: np.isin(classes.numpy(), members) for name, members in self.regions.items()}

    def constants(self, examples: TaskSet) -> dict[str, list[Json]]:
        """Return the scores of empty masks."""
        return {"constant-empty": [self._compared(mask, torch.zeros_like(mask)) for mask in examples.targets]}

    def _compared(self, truth: Classes, predicted: Classes) -> dict[str, float | None]:
        masks = self.region_masks(truth), self.region_masks(predicted)
        return {
            f"{metric}_{name}": value
            for name in self.regions
            for metric, value in region_scores(masks[0][name], masks[1][name], self.spacing_mm)._asdict().items()
        }


def _cross_entropy(outputs: Outputs, truth: Truth) -> Float[Tensor, "batch output"]:
    """Cross-entropy per example and output; a class weighs 1 − its share of the example's voxels."""
    weights = 1 - truth.mean((3, 4, 5), keepdim=True)
    return -(weights * truth * outputs.log_softmax(2)).mean((2, 3, 4, 5))


def _dice_loss(outputs: Outputs, truth: Truth) -> Float[Tensor, "batch output"]:
    """1 − soft Dice, mean over classes.

    Deviation: per example, where the release sums over the batch first: an example's loss is its own.
    """
    predicted = outputs.softmax(2)
    shared = (predicted * truth).sum((3, 4, 5))
    return 1 - (2 * shared / (predicted.sum((3, 4, 5)) + truth.sum((3, 4, 5)) + 1e-7)).mean(2)


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Return where the windows of one axis begin: evenly, and the last flush with the end, so that all is covered."""
    last = max(length - window, 0)
    step = max(int(window * (1 - overlap)), 1)
    return [*range(0, last, step), last]


def sliding_window(
    predict: Callable[[Batch], Float[Tensor, "batch class _ _ _"]], volume: Batch, window: int, overlap: float
) -> Float[Tensor, "class i j k"]:
    """Return the mean of ``predict`` over all windows that hold a voxel: a volume may be larger than a window.

    A ``window`` has so many voxels per side; a shorter axis is taken whole. ``overlap`` is the share of it that the
    next one sees again.
    """
    grid = tuple(volume.target.shape[1:])
    corners = product(*(window_starts(side, window, overlap) for side in grid))
    places = [tuple(slice(start, start + window) for start in corner) for corner in corners]
    total, count = torch.zeros(0), torch.zeros(0)
    for start in range(0, len(places), AT_ONCE):
        some = places[start : start + AT_ONCE]
        predicted = predict(_windows(volume, some))
        if start == 0:
            total, count = predicted.new_zeros(predicted.shape[1], *grid), predicted.new_zeros(grid)
        for place, part in zip(some, predicted, strict=True):
            total[(slice(None), *place)] += part
            count[place] += 1
    return total / count


def _windows(volume: Batch, places: Sequence[tuple[slice, ...]]) -> Batch:
    def cut(values: Shaped[Tensor, "1 i j k"]) -> Shaped[Tensor, "window _ _ _"]:
        return torch.stack([values[0][place] for place in places])

    inputs = {name: cut(values) for name, values in volume.inputs.items()}
    present = {name: flags.expand(len(places)) for name, flags in volume.present.items()}
    return Batch(inputs, present, cut(volume.target), volume.examples * len(places))


class RegionScores(NamedTuple):
    """Dice and IoU, 0 to 1, and HD95 in mm; None where one of the two is empty, so that there is no distance."""

    dice: float
    iou: float
    hd95: float | None


def region_scores(truth: Mask, predicted: Mask, spacing_mm: tuple[float, ...]) -> RegionScores:
    """Compare two masks.

    If both are empty, the model was right: Dice and IoU are 1, HD95 is 0. If one is, Dice and IoU are 0, HD95 None.
    HD95 is the larger of the two directed 95th percentiles, between surface voxels (those with a face to the outside).
    """
    either = truth | predicted
    if not either.any():
        return RegionScores(1.0, 1.0, 0.0)
    both, union = np.count_nonzero(truth & predicted), np.count_nonzero(either)
    dice, iou = float(2 * both / (both + union)), float(both / union)
    if not truth.any() or not predicted.any():
        return RegionScores(dice, iou, None)
    box = tuple(slice(int(places.min()), int(places.max()) + 1) for places in np.nonzero(either))
    return RegionScores(dice, iou, _hd95(truth[box], predicted[box], spacing_mm))


def _hd95(truth: Mask, predicted: Mask, spacing_mm: tuple[float, ...]) -> float:
    surfaces = [mask & ~binary_erosion(mask) for mask in (truth, predicted)]
    distances = [distance_transform_edt(~surface, sampling=spacing_mm) for surface in surfaces]
    return max(float(np.percentile(distances[1 - side][surfaces[side]], 95)) for side in (0, 1))
