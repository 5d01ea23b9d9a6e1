"""How abnormal a patient's values are, by their distance from those of public patients; nothing is learned."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

LEAST_PATIENTS = 8
"""Public patients with a value of a variable, below which its spread is unknown."""
MOST_RANGES = 3.0
"""Interquartile ranges at which a value counts no further."""
Extremes = tuple[Float[np.ndarray, "_ channel"], Float[np.ndarray, "_ channel"]]
"""The lowest and the highest value of every variable; NaN where none was observed."""


class Usual(NamedTuple):
    """The usual value of every variable, and the width in whose units a distance from it is counted."""

    middle: Float[np.ndarray, " variable"]
    width: Float[np.ndarray, " variable"]


def abnormality(given: Extremes, public: Extremes) -> Float[np.ndarray, " example"]:
    """Return how abnormal every example's values are: the sum over variables, high and low.

    High is the highest value's :func:`degrees` upwards, low the lowest value's downwards. A value that was not observed
    counts nothing, nor does a variable that fewer than :data:`LEAST_PATIENTS` public patients have.
    """
    total = np.zeros(len(given[0]))
    for sign, mine, theirs in zip((-1.0, 1.0), given, public, strict=True):
        total += np.nan_to_num(degrees(mine, usual(theirs), np.full(mine.shape[1], sign))).sum(1)
    return total


def usual(public: Float[np.ndarray, "patient variable"]) -> Usual:
    """Return the median and the interquartile range of every variable.

    Both are NaN where fewer than :data:`LEAST_PATIENTS` patients have it, or half of them the same value.
    """
    middle, width = np.full((2, public.shape[1]), np.nan)
    for number, column in enumerate(public.T):
        known = column[np.isfinite(column)]
        if len(known) >= LEAST_PATIENTS:
            low, median, high = np.percentile(known, (25, 50, 75))
            if high > low:
                middle[number], width[number] = median, high - low
    return Usual(middle, width)


def degrees(
    given: Float[np.ndarray, "example variable"], usual: Usual, signs: Float[np.ndarray, " variable"]
) -> Float[np.ndarray, "example variable"]:
    """Return how far each value lies beyond the usual one, from 0 to :data:`MOST_RANGES` interquartile ranges.

    NaN where it was not observed, or is not known what is usual. ``signs`` are 1 where high values count, −1 where low
    ones do.
    """
    return np.asarray((signs * (given - usual.middle) / usual.width).clip(0.0, MOST_RANGES))
