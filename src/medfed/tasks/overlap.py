"""How well a predicted region agrees with the true one: Dice, IoU, and the 95th percentile of surface distances.

Source: Maier-Hein, Reinke et al., Metrics reloaded, Nature Methods 21:195 (2024).

Run a model over a volume larger than it is trained on, by windows that overlap, and average what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor

from medfed.core.types import Batch

Mask = Bool[np.ndarray, "i j k"]


class RegionScores(NamedTuple):
    """Dice and IoU, 0 to 1, and HD95 in mm; None where one of the two is empty, so that there is no distance."""

    dice: float
    iou: float
    hd95: float | None


def region_scores(truth: Mask, said: Mask, spacing_mm: tuple[float, ...]) -> RegionScores:
    """Compare two masks.

    If both are empty, the model was right: Dice and IoU are 1, HD95 is 0. If one is, Dice and IoU are 0, HD95 None.
    HD95 is the larger of the two directed 95th percentiles, between surface voxels (those with a face to the outside).
    """
    either = truth | said
    if not either.any():
        return RegionScores(1.0, 1.0, 0.0)
    both, union = np.count_nonzero(truth & said), np.count_nonzero(either)
    dice, iou = float(2 * both / (both + union)), float(both / union)
    if not truth.any() or not said.any():
        return RegionScores(dice, iou, None)
    box = tuple(slice(int(places.min()), int(places.max()) + 1) for places in np.nonzero(either))
    return RegionScores(dice, iou, _hd95(truth[box], said[box], spacing_mm))


def _hd95(truth: Mask, said: Mask, spacing_mm: tuple[float, ...]) -> float:
    one, other = _surface(truth), _surface(said)
    return max(
        float(np.percentile(_distance_to(other, spacing_mm)[one], 95)),
        float(np.percentile(_distance_to(one, spacing_mm)[other], 95)),
    )


def _surface(mask: Mask) -> Mask:
    surface: np.ndarray = mask & ~binary_erosion(mask)
    return surface


def _distance_to(surface: Mask, spacing_mm: tuple[float, ...]) -> Float[np.ndarray, "i j k"]:
    distance: np.ndarray = distance_transform_edt(~surface, sampling=spacing_mm)
    return distance


AT_ONCE = 4
"""Windows per forward."""


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Return where the windows of one axis begin: evenly, and the last flush with the end, so that all is covered."""
    last = max(length - window, 0)
    step = max(int(window * (1 - overlap)), 1)
    return [*range(0, last, step), last]


def sliding_window(
    predict: Callable[[Batch], Float[Tensor, "batch class _ _ _"]], volume: Batch, window: int, overlap: float
) -> Float[Tensor, "class i j k"]:
    """Return the mean, over all windows that hold a voxel, of what ``predict`` says of it.

    Args:
        predict: probabilities of the classes in windows.
        volume: one example.
        window: voxels per side; a shorter axis is taken whole.
        overlap: share of a window that the next one sees again.
    """
    grid = tuple(volume.target.shape[1:])
    corners = product(*(window_starts(side, window, overlap) for side in grid))
    places = [tuple(slice(start, start + window) for start in corner) for corner in corners]
    total, count = torch.zeros(0), torch.zeros(0)
    for start in range(0, len(places), AT_ONCE):
        some = places[start : start + AT_ONCE]
        said = predict(_windows(volume, some))
        if start == 0:
            total, count = said.new_zeros(said.shape[1], *grid), said.new_zeros(grid)
        for place, part in zip(some, said, strict=True):
            total[(slice(None), *place)] += part
            count[place] += 1
    return total / count


def _windows(volume: Batch, places: Sequence[tuple[slice, ...]]) -> Batch:
    number = len(places)
    return Batch(
        {
            name: torch.cat([values[(slice(None), *place)] for place in places])
            for name, values in volume.inputs.items()
        },
        {name: flags.expand(number) for name, flags in volume.present.items()},
        torch.cat([volume.target[(slice(None), *place)] for place in places]),
        volume.examples * number,
    )
