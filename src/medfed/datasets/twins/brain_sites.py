"""What sequences show, and how the scanners of five sites differ."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

TISSUE = {
    "t1": np.array([1.0, 0.75, 0.35]),
    "t1c": np.array([1.0, 0.8, 0.35]),
    "t2": np.array([0.6, 0.75, 1.3]),
    "flair": np.array([0.7, 0.85, 0.3]),
}
"""Intensity of white matter, grey matter and fluid."""

CONTRAST = {
    "t1": np.array([0.0, -0.4, -0.15, -0.1]),
    "t1c": np.array([0.0, -0.35, -0.1, 0.8]),
    "t2": np.array([0.0, 0.5, 0.45, 0.2]),
    "flair": np.array([0.0, 0.1, 0.55, 0.3]),
}
"""What background, core, oedema and enhancing tumour add to it."""


class Site(NamedTuple):
    """A scanner: share of patients, T1 intensity of white matter, noise relative to it, blur in voxels, shading."""

    code: str
    share: float
    gain: float
    noise: float
    blur: float
    shading: float


SITES = (
    Site("2013", 0.1, 250, 0.14, 0.4, 0.05),
    Site("CBICA", 0.3, 900, 0.06, 0.6, 0.12),
    Site("TCIA01", 0.2, 400, 0.1, 0.5, 0.03),
    Site("TCIA02", 0.25, 320, 0.12, 0.9, 0.08),
    Site("TCIA06", 0.15, 600, 0.08, 0.3, 0.15),
)
