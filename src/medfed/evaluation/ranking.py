"""AUROC and average precision with example weights, for many weightings at once: one sort, then weighted counting.

Source: AUROC as the Mann-Whitney statistic with mid-ranks (Hanley and McNeil 1982); average precision as the step-wise
sum Σ (R_n − R_{n−1}) P_n. On integer weights both equal scikit-learn's on the examples repeated so many times.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class TieGroups(NamedTuple):
    """Positive and negative weight per group of equal scores, ascending by score."""

    positive: Float[np.ndarray, "replicate group"]
    negative: Float[np.ndarray, "replicate group"]


def tie_groups(
    positive: Bool[np.ndarray, " example"],
    score: Float[np.ndarray, " example"],
    weights: Float[np.ndarray, "replicate example"],
) -> TieGroups:
    """Sort once and add up the weights of examples whose scores are equal."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    sorted_weights = weights[:, order]
    total = np.add.reduceat(sorted_weights, starts, axis=1)
    hits = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)
    return TieGroups(hits, total - hits)


def weighted_auroc(groups: TieGroups) -> Float[np.ndarray, " replicate"]:
    """Probability that a positive scores above a negative, ties counting half; NaN where a class has no weight."""
    below = np.cumsum(groups.negative, axis=1) - groups.negative / 2
    pairs = groups.positive.sum(1) * groups.negative.sum(1)
    return _ratio((groups.positive * below).sum(1), pairs)


def weighted_average_precision(groups: TieGroups) -> Float[np.ndarray, " replicate"]:
    """Mean precision at the scores of the positives; NaN where a class has no weight."""
    hits = groups.positive[:, ::-1]
    found = np.cumsum(hits, axis=1)
    shown = np.cumsum(hits + groups.negative[:, ::-1], axis=1)
    precision = np.divide(found, shown, out=np.zeros_like(found), where=shown > 0)
    total = np.where(groups.negative.sum(1) > 0, hits.sum(1), 0.0)
    return _ratio((hits * precision).sum(1), total)


def _ratio(
    above: Float[np.ndarray, " replicate"], below: Float[np.ndarray, " replicate"]
) -> Float[np.ndarray, " replicate"]:
    ratio: np.ndarray = np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
    return ratio
