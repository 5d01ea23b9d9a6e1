"""How far probabilities can be trusted: Brier score, expected calibration error and the reliability curve.

Source: Brier 1950; Naeini et al. 2015 (binary: the probability of class 1 against its frequency); Guo et al. 2017 (more
classes: the largest probability against accuracy). :data:`NUM_BINS` equal-width bins over [0, 1]; 1.0 is in the last.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

NUM_BINS = 15


class ReliabilityPoint(NamedTuple):
    """One non-empty bin: mean probability, observed frequency, number of examples."""

    confidence: float
    observed: float
    num_examples: int


def reliability_curve(
    targets: Int[np.ndarray, " example"], scores: Float[np.ndarray, "example answer"]
) -> list[ReliabilityPoint]:
    """Return the non-empty bins, ascending by probability."""
    confidence, outcome = _events(targets, scores)
    bins = _bins(confidence)
    masks = [bins == index for index in np.unique(bins)]
    return [ReliabilityPoint(float(confidence[m].mean()), float(outcome[m].mean()), int(m.sum())) for m in masks]


def weighted_calibration_error(
    targets: Int[np.ndarray, " example"],
    scores: Float[np.ndarray, "example answer"],
    weights: Float[np.ndarray, "replicate example"],
) -> Float[np.ndarray, " replicate"]:
    """Σ over bins of (share of examples) · |observed frequency − mean probability|."""
    confidence, outcome = _events(targets, scores)
    gap = np.zeros((len(targets), NUM_BINS))
    gap[np.arange(len(targets)), _bins(confidence)] = outcome - confidence
    error: np.ndarray = np.abs(weights @ gap).sum(1) / weights.sum(1)
    return error


def weighted_brier(
    targets: Int[np.ndarray, " example"],
    scores: Float[np.ndarray, "example answer"],
    weights: Float[np.ndarray, "replicate example"],
) -> Float[np.ndarray, " replicate"]:
    """Mean squared error of the probability of class 1; with more classes, summed over the classes."""
    if scores.shape[1] == 2:
        squares = (scores[:, 1] - targets) ** 2
    else:
        squares = ((scores - np.eye(scores.shape[1])[targets]) ** 2).sum(1)
    score: np.ndarray = weights @ squares / weights.sum(1)
    return score


def _events(
    targets: Int[np.ndarray, " example"], scores: Float[np.ndarray, "example answer"]
) -> tuple[Float[np.ndarray, " example"], Float[np.ndarray, " example"]]:
    if scores.shape[1] == 2:
        return scores[:, 1], (targets == 1).astype(float)
    return scores.max(1), (scores.argmax(1) == targets).astype(float)


def _bins(confidence: Float[np.ndarray, " example"]) -> Int[np.ndarray, " example"]:
    bins: np.ndarray = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    return bins
