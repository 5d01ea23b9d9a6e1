"""Run a model over a volume larger than it is trained on, by windows that overlap, and average what it says."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from medfed.types import Batch


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Return where the windows of one axis begin: evenly, and the last flush with the end, so that all is covered."""
    last = max(length - window, 0)
    step = max(int(window * (1 - overlap)), 1)
    return [*range(0, last, step), last]


def sliding_window(
    predict: Callable[[Batch], Float[Tensor, "batch class _ _ _"]], batch: Batch, window: int, overlap: float
) -> Float[Tensor, "batch class i j k"]:
    """Return the mean, over all windows that hold a voxel, of what ``predict`` says of it.

    Args:
        predict: probabilities of the classes in a window.
        batch: whole volumes.
        window: voxels per side; a shorter axis is taken whole.
        overlap: share of a window that the next one sees again.
    """
    grid = tuple(batch.target.shape[1:])
    total = count = torch.zeros(())
    for corner in product(*(window_starts(side, window, overlap) for side in grid)):
        place = (slice(None), *(slice(start, start + window) for start in corner))
        part = {name: values[place] for name, values in batch.inputs.items()}
        said = predict(Batch(part, batch.present, batch.target[place], batch.examples, batch.questions))
        if not total.ndim:
            total, count = said.new_zeros(*said.shape[:2], *grid), said.new_zeros(grid)
        total[(slice(None), *place)] += said
        count[place[1:]] += 1
    return total / count
