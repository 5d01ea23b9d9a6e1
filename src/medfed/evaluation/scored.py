"""The predictions of one task of one run, scored: what a comparison over runs needs, whatever the kind of answer.

Closed questions are :class:`ClosedTask`, open ones :class:`OpenTask`. Another kind of answer is another class with the
members of :class:`Scored`, and a line in :func:`read_scored`, which tells kinds apart by their records.

Open questions as a comparison over runs sees them: text metrics by part, beside constants that know the answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from medfed.core.catalog import TASKS
from medfed.core.errors import RunError
from medfed.evaluation.answers import PARTS, AnswerPredictions, Part, Said, answers_from_records, constant_answers, said
from medfed.evaluation.evaluate import (
    Role,
    TaskPredictions,
    constant_scores,
    groups,
    mean_score,
    predictions_from_records,
)
from medfed.evaluation.metrics import BY_NAME, METRICS, Score, score, single_class
from medfed.evaluation.text_metrics import TEXT_METRICS


class Measure(NamedTuple):
    """A metric, and the part of the examples it looks at (None: all)."""

    metric: str
    part: str | None
    higher_is_better: bool


@runtime_checkable
class Scored(Protocol):
    """A task's test examples and what every model said about them.

    Attributes:
        task, role: which task, and whether it was trained.
        closed: whether its questions are closed; only those enter the means over tasks.
        sample: fingerprint of examples and targets, in order; equal where two runs were tested on the same.
        patients: hashed patient of every example.
        models: the models, groups and constants that can be scored.
        measures: what they can be scored by.
    """

    task: str
    role: Role
    closed: bool

    @property
    def sample(self) -> str: ...  # noqa: D102
    @property
    def patients(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def models(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def measures(self) -> Sequence[Measure]: ...  # noqa: D102

    def patients_of(self, measure: Measure) -> Sequence[str]:
        """Return the patient of every example that the measure looks at."""
        ...

    def key(self, model: str) -> bytes:
        """Return a fingerprint of the model's predictions: equal predictions are resampled once."""
        ...

    def value(self, model: str, measure: Measure) -> Score:
        """Return the value on all examples."""
        ...

    def weighted(
        self, model: str, measure: Measure, weights: Float[np.ndarray, "replicate example"]
    ) -> Float[np.ndarray, " replicate"]:
        """Return the value per row of example weights; NaN where it is not defined."""
        ...

    def single_class(self, model: str) -> bool:
        """Whether the model gives every example the same answer."""
        ...


class ClosedTask:
    """A closed question's predictions: probabilities of the answers."""

    closed = True
    measures = tuple(Measure(metric.name, None, metric.higher_is_better) for metric in METRICS)

    def __init__(self, predictions: TaskPredictions) -> None:
        self.task, self.role = predictions.task, predictions.role
        self.patients = predictions.patients
        self._targets = predictions.targets
        self._scores = {**predictions.scores, **constant_scores(predictions)}
        self._groups = groups(self._scores)
        members = {name for names in self._groups.values() for name in names}
        self.models = [*(name for name in self._scores if name not in members), *self._groups]
        text = "\n".join(f"{e} {target}" for e, target in zip(predictions.examples, self._targets, strict=True))
        self.sample = hashlib.sha256(text.encode()).hexdigest()

    def patients_of(self, measure: Measure) -> Sequence[str]:
        """Return all patients."""
        return self.patients

    def key(self, model: str) -> bytes:
        """Return a fingerprint of the model's predictions."""
        return b"".join(self._digests[name] for name in self._members(model))

    def value(self, model: str, measure: Measure) -> Score:
        """Return the value on all examples; of a group, the mean of its models' values."""
        metric = BY_NAME[measure.metric]
        return mean_score([score(metric, self._targets, self._scores[name]) for name in self._members(model)])

    def weighted(
        self, model: str, measure: Measure, weights: Float[np.ndarray, "replicate example"]
    ) -> Float[np.ndarray, " replicate"]:
        """Return the value per row of example weights; NaN where it is not defined."""
        if self.value(model, measure).value is None:
            return np.full(len(weights), np.nan)
        metric = BY_NAME[measure.metric]
        parts = [metric.weighted(self._targets, self._scores[name], weights) for name in self._members(model)]
        mean: np.ndarray = np.mean(parts, axis=0)
        return mean

    def single_class(self, model: str) -> bool:
        """Whether the model, or a model of the group, gives every example the same answer."""
        return any(single_class(self._scores[name]) for name in self._members(model))

    def _members(self, model: str) -> list[str]:
        return self._groups.get(model, [model])

    @cached_property
    def _digests(self) -> dict[str, bytes]:
        return {name: hashlib.sha256(np.ascontiguousarray(v).tobytes()).digest() for name, v in self._scores.items()}


def read_scored(task: str, role: Role, records: Sequence[Mapping[str, Any]]) -> Scored:
    """Return the scored form of a prediction file's records.

    Raises:
        RunError: the records are of no known kind.
    """
    if all("answers" in record for record in records):
        return OpenTask(answers_from_records(task, role, TASKS[task].answers, records))
    if all("scores" in record and isinstance(record["target"], int) for record in records):
        return ClosedTask(predictions_from_records(task, role, TASKS[task].answers, records))
    raise RunError("not records of a known kind", where=f"predictions of task {task}", hint="run the study again")


class OpenTask:
    """An open task's predictions: answers in words."""

    closed = False
    measures = tuple(Measure(metric, part, True) for part in PARTS for metric in TEXT_METRICS)

    def __init__(self, predictions: AnswerPredictions) -> None:
        self.task, self.role = predictions.task, predictions.role
        self.patients = predictions.patients
        self._predictions = predictions
        text = "\n".join(f"{e} {r}" for e, r in zip(predictions.examples, predictions.references, strict=True))
        self.sample = hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def models(self) -> list[str]:
        """The models, then the constants."""
        return list(dict.fromkeys(model for model, _ in self._said))

    def patients_of(self, measure: Measure) -> list[str]:
        """Return the patient of every question of the measure's part."""
        mask = self._predictions.mask(_part(measure))
        return [patient for patient, kept in zip(self.patients, mask, strict=True) if kept]

    def key(self, model: str) -> bytes:
        """Return a fingerprint of the model's answers."""
        texts = self._predictions.answers.get(model, [model])
        return hashlib.sha256("\n".join(texts).encode()).digest()

    def value(self, model: str, measure: Measure) -> Score:
        """Return the value on all questions of the measure's part."""
        value = float(self.weighted(model, measure, np.ones((1, len(self.patients))))[0])
        return Score(value) if np.isfinite(value) else Score(None, f"no {measure.part} questions")

    def weighted(
        self, model: str, measure: Measure, weights: Float[np.ndarray, "replicate example"]
    ) -> Float[np.ndarray, " replicate"]:
        """Return the value per row of example weights; NaN where no question has weight."""
        part = _part(measure)
        found = self._said.get((model, part))
        if found is None:
            return np.full(len(weights), np.nan)
        return found.values(weights * self._predictions.mask(part))[:, list(TEXT_METRICS).index(measure.metric)]

    def single_class(self, model: str) -> bool:
        """Whether the model gives every question the same answer."""
        return all(found.single for (name, _), found in self._said.items() if name == model)

    @cached_property
    def _said(self) -> dict[tuple[str, Part], Said]:
        predictions = self._predictions
        counted = {model: said(predictions.references, texts) for model, texts in predictions.answers.items()}
        found = {(model, part): held for model, held in counted.items() for part in PARTS}
        for part in PARTS:
            mine = [text for text, kept in zip(predictions.references, predictions.mask(part), strict=True) if kept]
            for model, text in constant_answers(mine).items():
                found[model, part] = said(predictions.references, [text] * len(predictions.references), text)
        return found


def _part(measure: Measure) -> Part:
    return next(part for part in PARTS if part == measure.part)
