"""95 % intervals and p-values by resampling patients, not examples.

Two images of one patient are not two pieces of evidence.

Source: percentile bootstrap (Efron and Tibshirani 1993, ch. 13) on clusters (Davison and Hinkley 1997, §3.8). A
resample is a weight per patient, drawn from a multinomial, and a metric reads it as a weight per example: no example is
copied. Resamples on which a metric is not defined (a class vanished) are dropped and counted. With more than
``max_undefined`` of them, or fewer than two patients, there is no interval, and the reason says so. The calibration
error grows under resampling (every bin gets noise), so its interval leans upwards.

With few seeds a percentile bootstrap is too narrow: over five it finds an effect that is not there about three times
too often. So the deviation that comes from drawing seeds is stretched by √(S/(S−1)) · t/z, the "expanded" percentile
interval (Hesterberg 2015). A metric with two bounds is stretched on the logit scale of its range, and one with a lower
bound on the log scale. So no interval leaves the range. p-values come from the same resamples, with the +1
correction (Davison and Hinkley 1997, §4.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit, logit
from scipy.stats import norm, t

from medfed.core.rng import Key, numpy_rng
from medfed.study.evaluation import BootstrapSettings

Replicates = Float[np.ndarray, " replicate"]
MAX_CHUNK_VALUES = 4_000_000
"""Weights held at once (32 MB): memory does not grow with the number of resamples."""
TAIL = 0.975
"""Where t and z are compared: the upper bound of a 95 % interval."""
UNBOUNDED = (-math.inf, math.inf)


class Interval(NamedTuple):
    """Bounds, or None with a reason."""

    low: float | None
    high: float | None
    reason: str | None = None


def interval(values: Replicates, num_patients: int, settings: BootstrapSettings | None = None) -> Interval:
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


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values in the given order: max over smaller p of (m − rank) · p, at most 1."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    factors = len(p_values) - np.arange(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * np.asarray(p_values)[order]), 1.0)
    return [float(value) for value in adjusted]


def two_sided_p(replicates: Replicates) -> float:
    """Return how often a resampled difference is on the far side of zero, twice, each count plus one."""
    defined = replicates[~np.isnan(replicates)]
    tail = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(defined) + 1))


def over_seeds(
    replicates: Float[np.ndarray, "seed replicate"], seeds: Sequence[int], bounds: tuple[float, float] = UNBOUNDED
) -> Replicates:
    """Return the resampled means over seeds: patients are drawn already, here the seeds are, with ``seeds`` as the key.

    No mean that is returned leaves ``bounds``, the metric's range.
    """
    count = len(seeds)
    mean: Replicates = replicates.mean(0)
    if count == 1:
        return mean
    draws = numpy_rng("compare", *seeds).multinomial(count, np.full(count, 1 / count), size=replicates.shape[1])
    drawn = np.einsum("rs,sr->r", draws / count, replicates)
    stretch = float(np.sqrt(count / (count - 1)) * t.ppf(TAIL, count - 1) / norm.ppf(TAIL))
    return stretched(mean, drawn, stretch, bounds)


def stretched(mean: Replicates, drawn: Replicates, stretch: float, bounds: tuple[float, float]) -> Replicates:
    """Return ``drawn`` moved away from ``mean`` by the factor ``stretch``, on the scale that ``bounds`` asks for."""
    low, high = bounds
    if math.isinf(low):
        linear: Replicates = mean + stretch * (drawn - mean)
        return linear
    logarithmic = (1.0, math.inf, np.log, np.exp)
    width, top, inside, outside = logarithmic if math.isinf(high) else (high - low, 1.0, logit, expit)
    start, end = (((values - low) / width).clip(0, top) for values in (mean, drawn))
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = outside(inside(start) + stretch * (inside(end) - inside(start)))
    at_edge = (start == 0) | (start == top)  # every seed is there
    result: Replicates = low + width * np.where(at_edge, start, moved)
    return result
