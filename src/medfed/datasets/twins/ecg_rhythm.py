"""When the simulated heart beats: sinus rhythm with its variability, atrial fibrillation, ectopic beats and pauses."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from medfed.datasets.twins.ecg_beats import P, Template, supraventricular, ventricular
from medfed.modalities.signal import RAW_HZ

Origin = Literal["ventricular", "supraventricular"]
Beat = tuple[float, float, Template]
"""R peak in seconds, seconds since the beat before, waves."""


class Rhythm(NamedTuple):
    """A rhythm's settings.

    Attributes:
        rate: beats per minute.
        respiratory: respiratory sinus arrhythmia, share of the RR interval.
        fibrillation: 0 sinus rhythm … 1 atrial fibrillation: irregular, no P, fibrillatory waves.
        ectopics: origin of each ectopic beat.
        prematurity: 0 on time … 1 as early as ectopic beats are.
    """

    rate: float
    respiratory: float
    fibrillation: float
    ectopics: tuple[Origin, ...]
    prematurity: float


def beats(rhythm: Rhythm, template: Template, seconds: int, rng: np.random.Generator) -> list[Beat]:
    """Return the beats of a recording, a little beyond both ends."""
    peaks = _peaks(rhythm, seconds, rng)
    dipole = template.dipole.copy()
    dipole[P] *= 1 - rhythm.fibrillation
    templates = [template._replace(dipole=dipole)] * len(peaks)
    inside = np.flatnonzero((peaks > 1.0) & (peaks < seconds - 0.6))
    chosen = rng.permutation(inside[::2])[: len(rhythm.ectopics)]  # never two in a row: each has its pause
    focus = ventricular(templates[0], rng, rhythm.prematurity)  # all from one place, so they look alike
    for position, origin in zip(chosen.tolist(), rhythm.ectopics, strict=False):
        interval = peaks[position] - peaks[position - 1]
        early = interval * rng.uniform(0.24, 0.44) * rhythm.prematurity
        if origin == "ventricular":
            peaks[position] -= early  # the sinus node goes on: a full compensatory pause
            templates[position] = focus
        else:
            peaks[position] -= early
            peaks[position + 1 :] -= early * 0.7  # the sinus node is reset: an incomplete pause
            templates[position] = supraventricular(templates[position], rng, rhythm.prematurity)
    intervals = np.diff(peaks, prepend=2 * peaks[0] - peaks[1])
    return list(zip(peaks.tolist(), intervals.tolist(), templates, strict=True))


def fibrillatory_waves(rhythm: Rhythm, num_samples: int, rng: np.random.Generator) -> Float64[np.ndarray, "3 time"]:
    """Irregular 5–8 Hz waves of the atria, largest towards V1."""
    if rhythm.fibrillation == 0:
        return np.zeros((3, num_samples))
    steps = 2 * np.pi * (rng.uniform(5, 8) + np.cumsum(rng.normal(0, 0.25, num_samples))) / RAW_HZ
    size = (
        rhythm.fibrillation
        * rng.uniform(0.03, 0.09)
        * (1 + 0.4 * np.sin(2 * np.pi * 0.7 * np.arange(num_samples) / RAW_HZ))
    )
    return np.outer([-0.5, 0.35, -0.7], size * np.sin(np.cumsum(steps)))


def _peaks(rhythm: Rhythm, seconds: int, rng: np.random.Generator) -> Float64[np.ndarray, " beat"]:
    mean = 60 / rhythm.rate
    count = int((seconds + 6) / mean * 1.4) + 4
    slow = np.convolve(rng.normal(0, 0.02, count + 4), np.ones(5) / np.sqrt(5), "valid")
    breath = np.sin(2 * np.pi * rng.uniform(0.18, 0.3) * mean * np.arange(count) + rng.uniform(0, 2 * np.pi))
    irregular = rng.lognormal(0, 0.24, count)
    sinus = 1 + slow + rhythm.respiratory * breath
    intervals = mean * (rhythm.fibrillation * irregular + (1 - rhythm.fibrillation) * sinus)
    peaks = np.cumsum(np.maximum(intervals, 0.3)) - rng.uniform(1, 1 + mean)
    return peaks[peaks < seconds + 3]  # an ectopic beat may pull later ones forward
