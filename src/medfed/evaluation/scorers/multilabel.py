"""Several labels per example: AUROC, average precision and F1 of each label, and their plain mean over labels.

A label counts if, among the examples whose truth is known, one has it and one has not. Others would add a convention
and no measurement; ``num_labels`` is the number that counted. A resample averages the labels that count in it.
Source: Med-MMFL's metrics for MIMIC-CXR, as scikit-learn defines them for a label on its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from medfed.evaluation.metrics import tie_groups, weighted_auroc, weighted_average_precision
from medfed.evaluation.scorers.base import MetricInfo, Scored, Scorer, Values, Weights
from medfed.records.schema import Json

THRESHOLD = 0.5
"""Probability above which a label counts as present."""


class ScoredLabels(Scored):
    """Truths and probabilities of several labels, unknown truths as NaN."""

    def __init__(self, truths: Sequence[Json], responses: Sequence[Json]) -> None:
        self._truth, self._probability = np.array(truths, np.float64), np.array(responses, np.float64)
        self.num_examples = len(truths)
        self._sound = self._truth.ndim == 2 and bool(np.isfinite(self._probability).all())

    def values(self, weights: Weights) -> Values:
        """Return the means over labels; NaN where no label counts, or where a probability is not a number."""
        if not self._sound:
            return {metric.name: np.full(len(weights), np.nan) for metric in MultiLabel.metrics}
        places = range(self._truth.shape[1])
        labels = [_label(self._truth[:, place], self._probability[:, place], weights) for place in places]
        values = {name: _mean([label[name] for label in labels]) for name in labels[0]}
        counted = np.sum([np.isfinite(label["macro_auroc"]) for label in labels], axis=0)
        return {**values, "num_labels": counted.astype(np.float64)}


class MultiLabel(Scorer):
    """Truth: 1, 0 or None per label. Response: a probability per label."""

    name = "multilabel"
    primary = "macro_auroc"
    metrics = (
        MetricInfo("macro_auroc", "Macro AUROC"),
        MetricInfo("macro_auprc", "Macro AUPRC"),
        MetricInfo("macro_f1", "Macro F1"),
        MetricInfo("num_labels", "Labels counted", high=np.inf),
    )

    def scored(self, truths: Sequence[Json], responses: Sequence[Json]) -> Scored:
        """Count one model's probabilities."""
        return ScoredLabels(truths, responses)


def _label(
    truth: Float[np.ndarray, " example"], probability: Float[np.ndarray, " example"], weights: Weights
) -> Values:
    """Return one label's metrics, under the names of their means."""
    known = np.isfinite(truth)
    if not known.any():
        return dict.fromkeys(("macro_auroc", "macro_auprc", "macro_f1"), np.full(len(weights), np.nan))
    positive, score, weights = truth[known] == 1, probability[known], weights[:, known]
    groups = tie_groups(positive, score, weights)
    auroc = weighted_auroc(groups)
    hits = weights @ (positive & (score > THRESHOLD))
    named = weights @ (score > THRESHOLD) + weights @ positive
    f1 = np.divide(2 * hits, named, out=np.full(len(weights), np.nan), where=np.isfinite(auroc))
    return {"macro_auroc": auroc, "macro_auprc": weighted_average_precision(groups), "macro_f1": f1}


def _mean(labels: Sequence[Float[np.ndarray, " replicate"]]) -> Float[np.ndarray, " replicate"]:
    """Return the mean over the labels that are defined, replicate by replicate."""
    counted = np.isfinite(labels)
    total = np.where(counted, labels, 0).sum(0)
    mean: np.ndarray = np.divide(total, counted.sum(0), out=np.full(len(total), np.nan), where=counted.any(0))
    return mean
