"""Several labels per example: AUROC, average precision and F1 of each label, and their plain mean over labels.

A label counts if, among the examples whose truth is known, one has it and one has not; others would add a convention,
not a measurement, so ``num_labels`` says how many counted. Within a resample the labels that count there are averaged.
Source: Med-MMFL's metrics for MIMIC-CXR, as scikit-learn defines them for a label on its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from medfed.evaluation.kinds.base import Kind, KindMetric, Values, Weights
from medfed.evaluation.metrics import tie_groups, weighted_auroc, weighted_average_precision
from medfed.tasks.base import Json

THRESHOLD = 0.5
"""Probability above which a label is said to be present."""


class MultiLabel(Kind):
    """Truth: 1, 0 or None per label. Response: a probability per label."""

    name = "multilabel"
    primary = "macro_auroc"
    metrics = (
        KindMetric("macro_auroc", "Macro AUROC"),
        KindMetric("macro_auprc", "Macro AUPRC"),
        KindMetric("macro_f1", "Macro F1"),
        KindMetric("num_labels", "Labels counted"),
    )

    def values(self, truths: Sequence[Json], responses: Sequence[Json], weights: Weights) -> Values:
        """Return the means over labels; NaN where no label counts, or where a probability is not a number."""
        truth, probability = np.array(truths, np.float64), np.array(responses, np.float64)
        if truth.ndim != 2 or not np.isfinite(probability).all():
            return {metric.name: np.full(len(weights), np.nan) for metric in self.metrics}
        labels = [_label(truth[:, place], probability[:, place], weights) for place in range(truth.shape[1])]
        values = {name: _mean([label[name] for label in labels]) for name in labels[0]}
        counted = np.sum([np.isfinite(label["macro_auroc"]) for label in labels], axis=0)
        return {**values, "num_labels": counted.astype(np.float64)}


def _label(
    truth: Float[np.ndarray, " example"], probability: Float[np.ndarray, " example"], weights: Weights
) -> Values:
    """Return one label's metrics, under the names of their means."""
    known = np.isfinite(truth)
    if not known.any():
        nothing = np.full(len(weights), np.nan)
        return {"macro_auroc": nothing, "macro_auprc": nothing, "macro_f1": nothing}
    positive, score, weights = truth[known] == 1, probability[known], weights[:, known]
    groups = tie_groups(positive, score, weights)
    auroc = weighted_auroc(groups)
    hits = weights @ (positive & (score > THRESHOLD))
    named = weights @ (score > THRESHOLD) + weights @ positive
    f1 = np.divide(2 * hits, named, out=np.full(len(weights), np.nan), where=np.isfinite(auroc))
    return {"macro_auroc": auroc, "macro_auprc": weighted_average_precision(groups), "macro_f1": f1}


def _mean(labels: Sequence[Float[np.ndarray, " replicate"]]) -> Float[np.ndarray, " replicate"]:
    """Return the mean over the labels that are defined, replicate by replicate."""
    table = np.stack(labels)
    counted = np.isfinite(table)
    total = np.where(counted, table, 0).sum(0)
    mean: np.ndarray = np.divide(total, counted.sum(0), out=np.full(len(total), np.nan), where=counted.any(0))
    return mean


KINDS: tuple[Kind, ...] = (MultiLabel(),)
