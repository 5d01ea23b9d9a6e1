"""How abnormal a patient's values are, by their distance from those of public patients; nothing is learned."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

LEAST_PATIENTS = 8
"""Public patients with a value of a variable, below which its spread is unknown."""
MOST_RANGES = 3.0
"""Interquartile ranges at which a value counts no further."""
Extremes = tuple[Float[np.ndarray, "_ channel"], Float[np.ndarray, "_ channel"]]
"""The lowest and the highest value of every variable; NaN where none was observed."""


def abnormality(given: Extremes, public: Extremes) -> Float[np.ndarray, " example"]:
    """Return how abnormal every example's values are: the sum over variables, high and low.

    High is the distance of the highest value above the median of public patients' highest values. It is counted in
    their interquartile ranges, from 0 to :data:`MOST_RANGES`; low likewise. A value that was not observed counts
    nothing, nor does a variable that fewer than :data:`LEAST_PATIENTS` public patients have.
    """
    total = np.zeros(len(given[0]))
    for sign, mine, theirs in zip((-1.0, 1.0), given, public, strict=True):
        for channel in range(mine.shape[1]):
            known = theirs[:, channel][np.isfinite(theirs[:, channel])]
            if len(known) < LEAST_PATIENTS:
                continue
            low, middle, high = np.percentile(known, (25, 50, 75))
            if high > low:
                ranges = sign * (mine[:, channel] - middle) / (high - low)
                total += np.nan_to_num(ranges, nan=0.0).clip(0.0, MOST_RANGES)
    return total
