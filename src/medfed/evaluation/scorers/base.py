"""How responses become metrics: values under example weights, so that one bootstrap over patients serves every task.

A :class:`Scorer` sees JSON values, what is true and what a model responded, and knows no task and no model.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from medfed.evaluation.metrics import Score
from medfed.records.schema import Json

Weights = Float[np.ndarray, "replicate example"]
Replicates = Float[np.ndarray, " replicate"]
Values = dict[str, Replicates]
"""Metric → a value per row of weights."""


class MetricInfo(NamedTuple):
    """Key, title, direction and range of a metric."""

    name: str
    title: str
    higher_is_better: bool = True
    low: float = 0.0
    high: float = 1.0


class Scored(ABC):
    """One model's responses to the examples of a task: counted once, weighted many times.

    ``single_class`` says whether the model gives every example the same answer.
    """

    num_examples: int
    single_class: bool = False

    @abstractmethod
    def values(self, weights: Weights) -> Values:
        """Return every metric for every row of example weights; NaN where it is not defined for them."""

    def value(self, metric: str, weights: Weights) -> Replicates:
        """Return one metric for every row of example weights."""
        return self.values(weights)[metric]

    @cached_property
    def points(self) -> dict[str, Score]:
        """Every metric on all examples, each counted once."""
        values = self.values(np.ones((1, self.num_examples)))
        why = Score(None, "not defined on these examples" if self.num_examples else "no examples")
        return {name: Score(float(value[0])) if np.isfinite(value[0]) else why for name, value in values.items()}


class Scorer(ABC):
    """The metrics of one kind of answer, in the order of tables; a task's ``metric_kind`` is its name.

    The metric ``primary`` ranks models. Each of ``parts`` is scored apart; None is the whole. Models are ranked on the
    first part that has examples. ``baseline`` is the constant that every model is compared with.
    """

    name: str
    metrics: tuple[MetricInfo, ...]
    primary: str
    parts: tuple[str | None, ...] = (None,)
    baseline: str | None = None

    @abstractmethod
    def scored(self, truths: Sequence[Json], responses: Sequence[Json]) -> Scored:
        """Count one model's responses, in the order of ``truths``."""

    def points(self, truths: Sequence[Json], responses: Sequence[Json]) -> dict[str, float | None]:
        """Return every metric on all examples, each counted once; None where it is not defined."""
        points = self.scored(truths, responses).points if truths else {}
        return {metric.name: points[metric.name].value if points else None for metric in self.metrics}

    def range_of(self, metric: str, num_answers: int) -> tuple[float, float]:
        """Return the lowest and the highest value that the metric can have."""
        return next((one.low, one.high) for one in self.metrics if one.name == metric)

    def mask(self, part: str | None, truths: Sequence[Json]) -> Bool[np.ndarray, " example"]:
        """Return which examples belong to a part."""
        return np.ones(len(truths), bool)

    def constants(self, truths: Sequence[Json], num_answers: int, answers: Sequence[str]) -> dict[str, Json]:
        """Return the response of every constant predictor, by its name; none where the task has its own."""
        return {}

    def identity(self, truth: Json) -> str:
        """Return what tells truths apart: two runs were tested alike if examples and identities agree."""
        return json.dumps(truth, sort_keys=True)

    def problem(self, truths: Sequence[Json], responses: Sequence[Json], num_answers: int) -> str | None:
        """Return what is wrong with the responses; None if nothing is."""
        return None
