"""95 % intervals by resampling patients, not examples: two images of one patient are not two pieces of evidence.

Source: percentile bootstrap (Efron and Tibshirani 1993, ch. 13) on clusters (Davison and Hinkley 1997, §3.8). A
resample is a weight per patient, drawn from a multinomial, and a metric reads it as a weight per example: no example is
copied. Resamples on which a metric is not defined (a class vanished) are dropped and counted. With more than
``max_undefined`` of them, or fewer than two patients, there is no interval, and the reason says so. The calibration
error grows under resampling (every bin gets noise), so its interval leans upwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from medfed.core.rng import Key, numpy_rng
from medfed.study.evaluation import BootstrapSettings

MAX_CHUNK_VALUES = 4_000_000
"""Weights held at once (32 MB): memory does not grow with the number of resamples."""


class Interval(NamedTuple):
    """Bounds, or None with a reason."""

    low: float | None
    high: float | None
    reason: str | None = None


def interval(
    values: Float[np.ndarray, " replicate"], num_patients: int, settings: BootstrapSettings | None = None
) -> Interval:
    """Percentile interval of the defined ``values`` (NaN: not defined on that resample)."""
    settings = settings or BootstrapSettings()
    undefined = int(np.isnan(values).sum())
    if num_patients < 2:
        return Interval(None, None, "no interval: fewer than two patients")
    if undefined > settings.max_undefined * len(values):
        return Interval(None, None, f"no interval: not defined on {undefined} of {len(values)} resamples")
    tail = (1 - settings.level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high))


def patient_index(patients: Sequence[str]) -> Int[np.ndarray, " example"]:
    """Number patients by first appearance, so that hashing their ids changes no resample."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(patient, len(number)) for patient in patients], dtype=np.int64)


def resample_weights(
    patients: Sequence[str], num_resamples: int, *key: Key
) -> Iterator[Float[np.ndarray, "replicate example"]]:
    """Yield, in chunks, how often each example occurs in each resample of the patients; a pure function of ``key``."""
    index, rng = patient_index(patients), numpy_rng(*key)
    num_patients = int(index.max()) + 1
    rows = max(1, MAX_CHUNK_VALUES // len(index))
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        counts = rng.multinomial(num_patients, np.full(num_patients, 1 / num_patients), size=size)
        yield counts.astype(np.float64)[:, index]
