"""Run a model over a volume larger than it is trained on, by windows that overlap, and average what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from medfed.types import Batch

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
