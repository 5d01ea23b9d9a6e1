"""One class of a few: the metrics of :mod:`medfed.evaluation.metrics` on probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medfed.evaluation.kinds.base import Kind, KindMetric, Values, Weights
from medfed.evaluation.metrics import METRICS, score
from medfed.tasks.base import Json


class Classification(Kind):
    """Truth: a class index. Response: a probability for every class."""

    def __init__(self, name: str = "classification", primary: str = "auroc") -> None:
        self.name, self.primary = name, primary
        self.metrics = tuple(KindMetric(m.name, m.title, m.higher_is_better) for m in METRICS)

    def values(self, truths: Sequence[Json], responses: Sequence[Json], weights: Weights) -> Values:
        """Return every metric; one that is not defined on all the examples is NaN throughout."""
        targets = np.array(truths, np.int64)
        probabilities = np.array(responses, np.float64)
        undefined = np.full(len(weights), np.nan)
        return {
            metric.name: undefined
            if score(metric, targets, probabilities).value is None
            else metric.weighted(targets, probabilities, weights)
            for metric in METRICS
        }


KINDS: tuple[Kind, ...] = (Classification(),)
