"""Soft shapes on a pixel grid: the strokes that the chest phantom is drawn with. All maps are float32."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

Map = Float32[npt.NDArray[np.floating], "row column"]


def ramp(distance: Map, softness: float) -> Map:
    """0 outside, 1 inside, linear over ± ``softness`` around the border."""
    ramp = distance * (0.5 / softness)
    ramp += 0.5
    return np.clip(ramp, 0, 1, out=ramp)


def bell(distance: Map, width: float) -> Map:
    """exp(−(distance/width)²), floored at e⁻²⁰: denormal numbers would make the rest ten times slower."""
    scaled = distance * (1 / width)
    scaled *= -scaled
    np.maximum(scaled, -20, out=scaled)
    np.exp(scaled, out=scaled)
    return scaled


@lru_cache(maxsize=8)
def pixel_grid(shape: tuple[int, ...]) -> tuple[Map, Map]:
    """Return pixel centres: x spans [−columns/rows, columns/rows], y spans [−1, 1]."""
    rows, columns = shape
    row = (np.arange(rows, dtype=np.float32) * 2 + 1) / rows - 1
    column = ((np.arange(columns, dtype=np.float32) * 2 + 1) / columns - 1) * (columns / rows)
    x, y = np.meshgrid(column, row)
    return x, y


def mottle(shape: tuple[int, ...], cells: int, lungs: np.random.Generator) -> Map:
    """Smooth random texture in [0, 1] of about ``cells`` patches per side."""
    rows, columns = (_interpolation(pixels, cells) for pixels in shape)
    return rows @ lungs.random((cells, cells), dtype=np.float32) @ columns.T


@lru_cache(maxsize=16)
def _interpolation(pixels: int, cells: int) -> Map:
    """Linear interpolation from ``cells`` knots to ``pixels`` points, as a matrix."""
    place = np.linspace(0, cells - 1, pixels, dtype=np.float32)[:, None]
    weights: Map = np.maximum(1 - np.abs(place - np.arange(cells, dtype=np.float32)), 0)
    return weights


def blurred(film: Map, sigma: float) -> Map:
    """Blur by a Gaussian of ``sigma`` pixels; at these sizes two matrix products are faster than a filter."""
    rows, columns = (_gaussian(pixels, sigma) for pixels in film.shape)
    return rows @ film @ columns.T


@lru_cache(maxsize=32)
def _gaussian(pixels: int, sigma: float) -> Map:
    place = np.arange(pixels, dtype=np.float32)
    kernel = bell(place[:, None] - place, math.sqrt(2) * sigma)
    kernel[kernel < 1e-6] = 0
    kernel /= kernel.sum(1, keepdims=True)
    return kernel
