"""Agreement of a predicted region with the true one: Dice, IoU, and the 95th percentile of surface distances.

Source: Maier-Hein, Reinke et al., Metrics reloaded, Nature Methods 21:195 (2024).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import binary_erosion, distance_transform_edt

Mask = Bool[np.ndarray, "i j k"]


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
    one, other = _surface(truth), _surface(predicted)
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
