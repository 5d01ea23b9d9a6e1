"""One answer of a few: the metrics of :mod:`medfed.evaluation.metrics` on the answers' probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from medfed.evaluation.metrics import BY_NAME, METRICS, Score, score, single_class
from medfed.evaluation.scorers.base import MetricInfo, Replicates, Scored, Scorer, Values, Weights
from medfed.records.schema import Json

MAX_CONSTANTS = 5
"""With more answers than this, only the majority answer is a constant predictor."""


class ScoredChoice(Scored):
    """Class indices and probabilities of their answers."""

    def __init__(self, truths: Sequence[Json], responses: Sequence[Json]) -> None:
        self._targets = np.array(truths, np.int64)
        self._scores = np.array(responses, np.float64) if len(truths) else np.zeros((0, 2))
        self.num_examples = len(truths)
        self.single_class = single_class(self._scores)

    @cached_property
    def points(self) -> dict[str, Score]:
        """Every metric on all examples, scikit-learn's where it has it, with the reason where it has no value."""
        return {metric.name: score(metric, self._targets, self._scores) for metric in METRICS}

    def values(self, weights: Weights) -> Values:
        """Return every metric; one that is not defined on all the examples is NaN throughout."""
        return {metric.name: self.value(metric.name, weights) for metric in METRICS}

    def value(self, metric: str, weights: Weights) -> Replicates:
        """Return one metric; NaN throughout if it is not defined on all the examples."""
        if self.points[metric].value is None:
            return np.full(len(weights), np.nan)
        return BY_NAME[metric].weighted(self._targets, self._scores, weights)


class Choice(Scorer):
    """Truth: a class index. Response: a probability for every answer."""

    def __init__(self, name: str = "classification", primary: str = "auroc") -> None:
        self.name, self.primary = name, primary
        self.metrics = tuple(MetricInfo(m.name, m.title, m.higher_is_better, m.low, m.high) for m in METRICS)

    def scored(self, truths: Sequence[Json], responses: Sequence[Json]) -> Scored:
        """Count one model's probabilities."""
        return ScoredChoice(truths, responses)

    def range_of(self, metric: str, num_answers: int) -> tuple[float, float]:
        """Return the metric's range; the Brier score of more than two answers is summed over them."""
        low, high = super().range_of(metric, num_answers)
        return (low, 2.0) if metric == "brier" and num_answers > 2 else (low, high)

    def constants(self, truths: Sequence[Json], num_answers: int, answers: Sequence[str]) -> dict[str, Json]:
        """Return ``always-<answer>`` for every answer, or ``majority`` if there are many."""
        sure = np.eye(num_answers).tolist()
        if num_answers <= MAX_CONSTANTS:
            return {f"always-{answer.lower()}": row for answer, row in zip(answers, sure, strict=False)}
        counts = np.bincount(np.array(truths, np.int64), minlength=num_answers)
        return {"majority": sure[int(counts.argmax())]}

    def problem(self, truths: Sequence[Json], responses: Sequence[Json], num_answers: int) -> str | None:
        """Return what is wrong with the number of probabilities or with a class index."""
        if wrong := sorted({len(response) for response in responses} - {num_answers}):
            return f"a response has {wrong[0]} probabilities, expected {num_answers}, one for every answer"
        if truths and not 0 <= min(truths) <= max(truths) < num_answers:
            return f"truths run from {min(truths)} to {max(truths)}, allowed are 0 to {num_answers - 1}"
        return None
