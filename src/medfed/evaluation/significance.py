"""From resamples to p-values: drawing seeds, two-sided p, and Holm's correction.

With few seeds a percentile bootstrap is too narrow: over five it finds an effect that is not there about three times
too often. So the deviation that comes from drawing seeds is stretched by √(S/(S−1)) · t/z, the "expanded" percentile
interval (Hesterberg 2015). A metric with two bounds is stretched on the logit scale of its range, and one with a lower
bound on the log scale. So no interval leaves the range. p-values come from the same resamples, with the +1
correction (Davison and Hinkley 1997, §4.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logit
from scipy.stats import norm, t

from medfed.core.rng import numpy_rng

Replicates = Float[np.ndarray, " replicate"]
TAIL = 0.975
"""Where t and z are compared: the upper bound of a 95 % interval."""
UNBOUNDED = (-math.inf, math.inf)


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
