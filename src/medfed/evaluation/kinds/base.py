"""How responses become metrics: values under weights, so that one bootstrap over patients serves every task.

A :class:`Kind` sees JSON values, what would be right and what a model said, and knows no task and no model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from medfed.tasks.base import Json

Weights = Float[np.ndarray, "replicate example"]
Values = dict[str, Float[np.ndarray, " replicate"]]


class KindMetric(NamedTuple):
    """Key, title and direction of a metric."""

    name: str
    title: str
    higher_is_better: bool = True


class Kind(ABC):
    """The metrics of one kind of task.

    Attributes:
        name: what a task's ``metric_kind`` says.
        metrics: in the order of tables.
        primary: the metric that ranks algorithms.
    """

    name: str
    metrics: tuple[KindMetric, ...]
    primary: str

    @abstractmethod
    def values(self, truths: Sequence[Json], responses: Sequence[Json], weights: Weights) -> Values:
        """Return every metric for every row of example weights; NaN where it is not defined for them."""


class PerExample(Kind):
    """A kind whose metrics are weighted means of a number per example, None or NaN where an example has none."""

    @abstractmethod
    def numbers(self, truth: Json, response: Json) -> dict[str, float | None]:
        """Return one example's number of every metric."""

    def values(self, truths: Sequence[Json], responses: Sequence[Json], weights: Weights) -> Values:
        """Return weighted means over the examples that have a number."""
        rows = [self.numbers(truth, response) for truth, response in zip(truths, responses, strict=True)]
        return {metric.name: _mean([row[metric.name] for row in rows], weights) for metric in self.metrics}


def _mean(numbers: Sequence[float | None], weights: Weights) -> Float[np.ndarray, " replicate"]:
    column = np.array([np.nan if number is None else number for number in numbers], np.float64)
    known = np.isfinite(column)
    total = weights[:, known].sum(1)
    summed = weights[:, known] @ column[known]
    mean: np.ndarray = np.divide(summed, total, out=np.full(len(weights), np.nan), where=total > 0)
    return mean
