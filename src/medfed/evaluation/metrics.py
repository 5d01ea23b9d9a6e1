"""Metrics of closed questions, on class indices and probabilities; a value that is not defined is null with a reason.

Conventions. The answer is the class of the highest probability (the lower index on a tie), so a binary answer is "yes"
above 0.5. With two answers, precision, recall, F1, AUROC and AUPRC are those of class 1; with more they are the plain
mean over classes, one against the rest. AUROC, AUPRC, balanced accuracy and MCC are null where a class is absent, and
recall where the positive class is. Every metric is null where a score is NaN or infinite. Precision and MCC of a model
that never predicts a class are 0/0. They count as 0, as in the published tables, and the reason says so.

AUROC and average precision with example weights, for many weightings at once: one sort, then weighted counting.

Source: AUROC as the Mann-Whitney statistic with mid-ranks (Hanley and McNeil 1982); average precision as the step-wise
sum Σ (R_n − R_{n−1}) P_n. On integer weights both equal scikit-learn's on the examples repeated so many times.

How far probabilities can be trusted: Brier score, expected calibration error and the reliability curve.

Source: Brier 1950; Naeini et al. 2015 (binary: the probability of class 1 against its frequency); Guo et al. 2017 (more
classes: the largest probability against accuracy). :data:`NUM_BINS` equal-width bins over [0, 1]; 1.0 is in the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

Targets = Int[np.ndarray, " example"]
Scores = Float[np.ndarray, "example answer"]
Weights = Float[np.ndarray, "replicate example"]
Values = Float[np.ndarray, " replicate"]
ByClass = Float[np.ndarray, "replicate answer"]
NUM_BINS = 15


class Score(NamedTuple):
    """A value, or None; ``reason`` says why it is None or which convention made it a number."""

    value: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Metric:
    """One metric: its key in ``scores.json``, its title in a table, its direction and its range.

    ``weighted`` gives a value per row of example weights; NaN where it is not defined for that weighting. ``needs``
    says which classes must occur among the targets. With ``probabilities`` each row of scores must be a distribution.
    ``exact`` is scikit-learn's unweighted value where it has the metric's reference implementation.
    """

    name: str
    title: str
    higher_is_better: bool
    weighted: Callable[[Targets, Scores, Weights], Values]
    needs: Literal["any", "positive", "all"] = "any"
    probabilities: bool = False
    exact: Callable[[Targets, Scores], float] | None = None
    low: float = 0.0
    high: float = 1.0


def score(metric: Metric, targets: Targets, scores: Scores) -> Score:
    """Value of ``metric`` on all examples, each counted once; never a number where it is not defined."""
    reason = _undefined(metric, targets, scores)
    if reason is not None:
        return Score(None, reason)
    if metric.exact is not None:
        return Score(metric.exact(targets, scores))
    value = float(metric.weighted(targets, scores, np.ones((1, len(targets))))[0])
    if np.isnan(value):
        return Score(None, "0/0: no example of the class, and none predicted as it")
    return Score(value, _convention(metric, scores))


def single_class(scores: Scores) -> bool:
    """Whether a model gives every example the same answer."""
    return len(scores) > 0 and len(np.unique(scores.argmax(1))) == 1


def _undefined(metric: Metric, targets: Targets, scores: Scores) -> str | None:
    if len(targets) == 0:
        return "no examples"
    if broken := int((~np.isfinite(scores)).any(1).sum()):
        return f"{broken} of {len(scores)} scores are NaN or infinite"
    if metric.probabilities and (scores.min() < 0 or not np.allclose(scores.sum(1), 1, atol=1e-3)):
        return "the scores are not probabilities: a row must lie in [0, 1] and sum to 1"
    wanted = {"any": (), "positive": _positive(scores), "all": range(scores.shape[1])}[metric.needs]
    absent = [str(answer) for answer in wanted if not (targets == answer).any()]
    return f"no example of class {', '.join(absent)} among the targets" if absent else None


def _convention(metric: Metric, scores: Scores) -> str | None:
    answered = np.unique(scores.argmax(1))
    if metric.name == "mcc" and len(answered) == 1:
        return "every answer is the same: 0/0 counted as 0"
    if metric.name == "precision" and not np.isin(_positive(scores), answered).all():
        return "a class was never predicted: 0/0 counted as 0"
    return None


def _positive(scores: Scores) -> range:
    """Return the classes that a metric averages: class 1 of two, else all."""
    return range(1, 2) if scores.shape[1] == 2 else range(scores.shape[1])


def _divide(above: np.ndarray, below: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
    quotient: np.ndarray = np.divide(above, below, out=np.full(above.shape, otherwise), where=below > 0)
    return quotient


class Confusion(NamedTuple):
    """Weight of the examples by class: rightly answered, of this class, answered with it."""

    right: ByClass
    true: ByClass
    answered: ByClass


def _counted(summary: Callable[[Confusion], Values], targets: Targets, scores: Scores, weights: Weights) -> Values:
    """Sum up the confusion of true and answered classes."""
    num_answers = scores.shape[1]
    onehot = np.zeros((len(targets), num_answers**2))
    onehot[np.arange(len(targets)), targets * num_answers + scores.argmax(1)] = 1.0
    counts = (weights @ onehot).reshape(len(weights), num_answers, num_answers)
    return summary(Confusion(np.diagonal(counts, axis1=1, axis2=2), counts.sum(2), counts.sum(1)))


def _positives(per_class: ByClass) -> Values:
    values: np.ndarray = per_class[:, 1] if per_class.shape[1] == 2 else per_class.mean(1)
    return values


def _recalls(counts: Confusion) -> ByClass:
    return _divide(counts.right, counts.true)


def _mcc(counts: Confusion) -> Values:
    right, true, answered = counts
    total = true.sum(1)
    covariance = right.sum(1) * total - (true * answered).sum(1)
    spread_true, spread_answered = total**2 - (true**2).sum(1), total**2 - (answered**2).sum(1)
    values = _divide(covariance, np.sqrt(spread_true * spread_answered), 0.0)
    values[spread_true <= 0] = np.nan
    return values


def _ranked(summary: Callable[[TieGroups], Values], targets: Targets, scores: Scores, weights: Weights) -> Values:
    groups = [tie_groups(targets == answer, scores[:, answer], weights) for answer in _positive(scores)]
    mean: np.ndarray = np.mean(list(map(summary, groups)), axis=0)
    return mean


def _sklearn(name: str, targets: Targets, scores: Scores) -> float:
    from sklearn import metrics  # noqa: PLC0415 (a second of CPU, which a finished run's table does not need)

    function = getattr(metrics, name)
    return float(np.mean([function(targets == answer, scores[:, answer]) for answer in _positive(scores)]))


class TieGroups(NamedTuple):
    """Positive and negative weight per group of equal scores, ascending by score."""

    positive: Float[np.ndarray, "replicate group"]
    negative: Float[np.ndarray, "replicate group"]


def tie_groups(
    positive: Bool[np.ndarray, " example"], score: Float[np.ndarray, " example"], weights: Weights
) -> TieGroups:
    """Sort once and add up the weights of examples whose scores are equal."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    sorted_weights = weights[:, order]
    total = np.add.reduceat(sorted_weights, starts, axis=1)
    hits = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)
    return TieGroups(hits, total - hits)


def weighted_auroc(groups: TieGroups) -> Values:
    """Probability that a positive scores above a negative, ties counting half; NaN where a class has no weight."""
    below = np.cumsum(groups.negative, axis=1) - groups.negative / 2
    return _divide((groups.positive * below).sum(1), groups.positive.sum(1) * groups.negative.sum(1))


def weighted_average_precision(groups: TieGroups) -> Values:
    """Mean precision at the scores of the positives; NaN where a class has no weight."""
    hits = groups.positive[:, ::-1]
    precision = _divide(np.cumsum(hits, axis=1), np.cumsum(hits + groups.negative[:, ::-1], axis=1), 0.0)
    return _divide((hits * precision).sum(1), np.where(groups.negative.sum(1) > 0, hits.sum(1), 0.0))


def _brier(targets: Targets, scores: Scores, weights: Weights) -> Values:
    """Mean squared error of the probability of class 1; with more classes, summed over the classes."""
    if scores.shape[1] == 2:
        squares = (scores[:, 1] - targets) ** 2
    else:
        squares = ((scores - np.eye(scores.shape[1])[targets]) ** 2).sum(1)
    score: np.ndarray = weights @ squares / weights.sum(1)
    return score


def _calibration_error(targets: Targets, scores: Scores, weights: Weights) -> Values:
    """Σ over bins of (share of examples) · |observed frequency − mean probability|."""
    confidence, outcome, bins = _events(targets, scores)
    gap = np.zeros((len(targets), NUM_BINS))
    gap[np.arange(len(targets)), bins] = outcome - confidence
    error: np.ndarray = np.abs(weights @ gap).sum(1) / weights.sum(1)
    return error


class ReliabilityPoint(NamedTuple):
    """One non-empty bin: mean probability, observed frequency, number of examples."""

    confidence: float
    observed: float
    num_examples: int


def reliability_curve(targets: Targets, scores: Scores) -> list[ReliabilityPoint]:
    """Return the non-empty bins, ascending by probability."""
    confidence, outcome, bins = _events(targets, scores)
    masks = [bins == index for index in np.unique(bins)]
    return [ReliabilityPoint(float(confidence[m].mean()), float(outcome[m].mean()), int(m.sum())) for m in masks]


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float | None:
    """Return Spearman's rank correlation, ties at their mean rank; None where a side is constant."""
    from scipy.stats import rankdata  # noqa: PLC0415 (large; loaded where it is used)

    ranks = [rankdata(column) for column in (a, b)]
    if len(ranks[0]) < 2 or any(np.ptp(column) == 0 for column in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _events(
    targets: Targets, scores: Scores
) -> tuple[Float[np.ndarray, " example"], Float[np.ndarray, " example"], Int[np.ndarray, " example"]]:
    """Return the probability of an answer, whether it is true, and the probability's bin, by example."""
    confidence, outcome = scores.max(1), scores.argmax(1) == targets
    if scores.shape[1] == 2:
        confidence, outcome = scores[:, 1], targets == 1
    bins = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    return confidence, outcome.astype(float), bins


_AUPRC, _BALANCED = partial(_ranked, weighted_average_precision), partial(_counted, lambda c: _recalls(c).mean(1))
METRICS = (
    Metric("auroc", "AUROC", True, partial(_ranked, weighted_auroc), "all", exact=partial(_sklearn, "roc_auc_score")),
    Metric("auprc", "AUPRC", True, _AUPRC, "all", exact=partial(_sklearn, "average_precision_score")),
    Metric("balanced_accuracy", "Balanced accuracy", True, _BALANCED, "all"),
    Metric("accuracy", "Accuracy", True, partial(_counted, lambda c: c.right.sum(1) / c.true.sum(1))),
    Metric("precision", "Precision", True, partial(_counted, lambda c: _positives(_divide(c.right, c.answered, 0.0)))),
    Metric("recall", "Recall", True, partial(_counted, lambda c: _positives(_recalls(c))), "positive"),
    Metric("f1", "F1", True, partial(_counted, lambda c: _positives(_divide(2 * c.right, c.true + c.answered)))),
    Metric("mcc", "MCC", True, partial(_counted, _mcc), "all", low=-1.0),
    Metric("ece", "ECE", False, _calibration_error, probabilities=True),
    Metric("brier", "Brier", False, _brier, probabilities=True),
)
BY_NAME = {metric.name: metric for metric in METRICS}
