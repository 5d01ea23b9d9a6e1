"""A grey image (chest radiograph, slice, photograph turned grey) as a square of fixed size.

It is the image modality of FedKIM's tasks CD, LOD, ECD, PED and AD (Table 2).
Deviation: FedKIM feeds 224 px; the side is a setting here, 64 px by default, so that studies run on a laptop.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Shaped
from pydantic import Field

from medfed.core.errors import DataError
from medfed.modalities.base import Modality, Moments, PerChannel

Images = Float32[np.ndarray, "example 1 size size"]


class ImageModality(Modality):
    """Grey images, one channel, of ``size`` pixels per side."""

    name: str = "image"
    units: ClassVar[str] = "intensity in [0, 1]"
    size: int = Field(default=64, ge=8, le=2048)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """``(1, size, size)``: channel, row, column."""
        return (1, self.size, self.size)

    def prepare(self, raw: Shaped[np.ndarray, "..."]) -> Float32[np.ndarray, "1 size size"]:
        """Cut the central square out of a grey image in [0, 1] and resize it with an antialiasing triangle filter.

        A cut, not a border: aspect ratios differ between hospitals, and a border would write the hospital into it.
        """
        hint = "check the dataset's load"
        if raw.ndim != 2 or 0 in raw.shape:
            raise DataError(f"an image has shape {raw.shape}; expected (rows, columns)", hint=hint)
        side = min(raw.shape)
        top, left = ((length - side) // 2 for length in raw.shape)
        square = np.asarray(raw, np.float32)[top : top + side, left : left + side]
        grey = torch.from_numpy(np.ascontiguousarray(square))
        low, high = torch.aminmax(grey)
        if not (low >= 0 and high <= 1):  # false for NaN as well
            raise DataError(f"an image has intensities from {low:g} to {high:g}; expected [0, 1]", hint=hint)
        if side == self.size:
            return grey[None].numpy()
        resized = F.interpolate(grey[None, None], (self.size, self.size), mode="bilinear", antialias=True)
        return resized[0].clamp_(0, 1).numpy()

    def moments(self, samples: Images) -> Moments:
        """Return count, sum and sum of squares over all pixels of ``samples``, in float64."""
        total, squares = 0.0, 0.0
        for sample in samples:  # one at a time: a float64 copy of everything would double the memory
            exact = sample.astype(np.float64)
            total += float(exact.sum())
            squares += float(np.square(exact).sum())
        return Moments(np.array([float(samples.size)]), np.array([total]), np.array([squares]))

    def normalise(self, samples: Images, mean: PerChannel, std: PerChannel) -> Images:
        """Return ``(samples − mean) / std`` per channel."""
        centred = samples - mean.astype(np.float32)[:, None, None]
        centred /= std.astype(np.float32)[:, None, None]
        return centred


MODALITIES: tuple[Modality, ...] = (ImageModality(),)
