"""From predictions to the rows of ``scores.json``: every model, metric and interval, constants always beside.

The constants and the federated-only model are the baselines the FedKIM paper leaves out. Ids leave this module hashed.
Nothing here opens a file: rows and records are plain lists and dicts that the run directory writes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from medfed.core.errors import RunError
from medfed.evaluation.bootstrap import Interval, interval, resample_weights
from medfed.evaluation.metrics import METRICS, Metric, Score, Scores, score, single_class
from medfed.study.evaluation import EvaluationSettings

Role = Literal["trained", "unseen"]
Row = dict[str, Any]
MEMBER = "/"
"""``local/client-0`` is one model of the group ``local``, whose value is the mean of its models' values."""
MAX_CONSTANTS = 5
"""With more answers than this, only the majority answer stands as a constant predictor."""


@dataclass(frozen=True)
class TaskPredictions:
    """What the models said about the test examples of one task.

    Attributes:
        task: task name.
        role: whether the task was trained on or is unseen.
        answers: answer strings by class index.
        examples: example ids, raw or hashed.
        patients: patient of every example.
        targets: class index of every example.
        scores: model → probability of every answer; NaN where the model gave none.
    """

    task: str
    role: Role
    answers: tuple[str, ...]
    examples: Sequence[str]
    patients: Sequence[str]
    targets: Int[np.ndarray, " example"]
    scores: Mapping[str, Float[np.ndarray, "example answer"]]

    def __post_init__(self) -> None:
        shape = (len(self.targets), len(self.answers))
        if not len(self.examples) == len(self.patients) == shape[0]:
            raise RunError(
                f"{len(self.examples)} examples, {len(self.patients)} patients, {shape[0]} targets",
                where=f"predictions of task {self.task}",
                hint="pass one example id, one patient id and one target per scored example",
            )
        for model, values in self.scores.items():
            if values.shape != shape:
                raise RunError(
                    f"scores have shape {values.shape}, expected {shape} (examples × answers)",
                    where=f"predictions of task {self.task}, model {model}",
                    hint="score every answer of every test example, in the order of the targets",
                )
        if shape[0] and not (self.targets.min() >= 0 and self.targets.max() < shape[1]):
            raise RunError(
                f"targets run from {self.targets.min()} to {self.targets.max()}, allowed are 0 to {shape[1] - 1}",
                where=f"predictions of task {self.task}",
                hint="leave examples without a known answer out of the task",
            )


def id_salt(index: pl.DataFrame) -> str:
    """Return a salt made of all ids of a dataset.

    Runs on the same data then share hashed ids, whatever their seed and partition, so that they can be compared patient
    by patient; who does not hold the dataset cannot recompute it.
    """
    ids = sorted(f"{example}\x00{patient}" for example, patient in index.select("example", "patient").iter_rows())
    return hashlib.sha256("\x01".join(ids).encode()).hexdigest()


def hash_id(salt: str, identifier: str) -> str:
    """Return 16 hex digits that name ``identifier`` and cannot be traced back without the salt."""
    return hashlib.sha256(f"{salt}\x00{identifier}".encode()).hexdigest()[:16]


def prediction_records(predictions: TaskPredictions, salt: str) -> list[Row]:
    """Return one JSON-ready record per example, ids hashed with ``salt``; a NaN score becomes null."""
    scores = {model: _finite_or_none(values) for model, values in predictions.scores.items()}
    return [
        {
            "example": hash_id(salt, predictions.examples[position]),
            "patient": hash_id(salt, predictions.patients[position]),
            "target": int(target),
            "scores": {model: values[position] for model, values in scores.items()},
        }
        for position, target in enumerate(predictions.targets)
    ]


def predictions_from_records(
    task: str, role: Role, answers: tuple[str, ...], records: Sequence[Mapping[str, Any]]
) -> TaskPredictions:
    """Invert :func:`prediction_records` (ids stay hashed); scores it makes are the same bit for bit."""
    models = list(records[0]["scores"]) if records else []
    return TaskPredictions(
        task,
        role,
        answers,
        [str(record["example"]) for record in records],
        [str(record["patient"]) for record in records],
        np.array([record["target"] for record in records], dtype=np.int64),
        {model: np.array([record["scores"][model] for record in records], dtype=np.float64) for model in models},
    )


def constant_scores(predictions: TaskPredictions) -> dict[str, Scores]:
    """Constant predictors: ``always-<answer>`` for each answer (up to :data:`MAX_CONSTANTS`), else ``majority``."""
    num_answers = len(predictions.answers)
    rows = np.zeros(len(predictions.targets), dtype=np.int64)
    if num_answers <= MAX_CONSTANTS:
        return {
            f"always-{answer.lower()}": np.eye(num_answers)[rows + index]
            for index, answer in enumerate(predictions.answers)
        }
    majority = int(np.bincount(predictions.targets, minlength=num_answers).argmax())
    return {"majority": np.eye(num_answers)[rows + majority]}


def groups(models: Iterable[str]) -> dict[str, list[str]]:
    """Return group → its models, of those ``models`` that belong to one."""
    found: dict[str, list[str]] = {}
    for model in models:
        group, separator, _ = model.partition(MEMBER)
        if separator:
            found.setdefault(group, []).append(model)
    return found


def mean_score(scores: Sequence[Score]) -> Score:
    """Return the mean; None with the reason of the first that has no value."""
    values = [part.value for part in scores if part.value is not None]
    reason = next((part.reason for part in scores if part.reason), None)
    return Score(sum(values) / len(values), reason) if len(values) == len(scores) else Score(None, reason)


def worst_value(metric: Metric, scores: Sequence[Score]) -> float | None:
    """Return the worst defined value, in the metric's direction."""
    values = [part.value for part in scores if part.value is not None]
    return (min(values) if metric.higher_is_better else max(values)) if values else None


def score_rows(
    tasks: Iterable[TaskPredictions], seed: int, settings: EvaluationSettings | None = None
) -> dict[str, list[Row]]:
    """Score every task.

    Args:
        tasks: predictions per task.
        seed: the run's seed; resamples depend on (seed, task) only, so every model sees the same ones.
        settings: how intervals are made and which models are compared.

    Returns:
        ``{"rows": […], "differences": […]}``, the content of ``scores.json``. A row's ``value`` is null with a
        ``reason`` where the metric is not defined; ``single_class`` tells a model whose answers are all the same. A
        group's row (``local``) has the mean of its models' values, and ``worst``. A
        difference is metric(model) − metric(baseline) on the same patients.
    """
    settings = settings or EvaluationSettings()
    rows: list[Row] = []
    differences: list[Row] = []
    for predictions in tasks:
        scored = _ScoredTask(predictions, seed, settings)
        rows += [scored.row(model, index) for model in scored.values for index in range(len(METRICS))]
        for model, baseline in settings.comparisons:
            if model in scored.values and baseline in scored.values:
                differences += [scored.difference(model, baseline, index) for index in range(len(METRICS))]
    return {"rows": rows, "differences": differences}


class _ScoredTask:
    """Values and bootstrap replicates of all models and metrics of one task, from one set of resamples."""

    def __init__(self, predictions: TaskPredictions, seed: int, settings: EvaluationSettings) -> None:
        self.predictions, self.settings = predictions, settings
        self.models = {**predictions.scores, **constant_scores(predictions)}
        targets = predictions.targets
        self.values = {name: [score(m, targets, probs) for m in METRICS] for name, probs in self.models.items()}
        self.replicates = self._resample(seed)
        self.same_answer = {name: single_class(probs) for name, probs in self.models.items()}
        self.worst: dict[str, list[float | None]] = {}
        for group, members in groups(self.models).items():
            self._average(group, members)

    def _average(self, group: str, members: Sequence[str]) -> None:
        """Put the mean over ``members`` in their place, patients resampled jointly; keep the worst member's value."""
        values = list(zip(*(self.values.pop(name) for name in members), strict=True))
        replicates = [self.replicates.pop(name) for name in members]
        self.values[group] = [mean_score(parts) for parts in values]
        self.replicates[group] = [np.mean(parts, axis=0) for parts in zip(*replicates, strict=True)]
        self.worst[group] = [worst_value(m, parts) for m, parts in zip(METRICS, values, strict=True)]
        self.same_answer[group] = any(self.same_answer.pop(name) for name in members)

    def row(self, model: str, index: int) -> Row:
        value = self.values[model][index]
        bounds = self._interval(self.replicates[model][index], value)
        return {
            "model": model,
            **self._common(index),
            "value": value.value,
            "ci_low": bounds.low,
            "ci_high": bounds.high,
            "reason": value.reason or bounds.reason,
            "single_class": self.same_answer[model],
            **({"worst": self.worst[model][index]} if model in self.worst else {}),
        }

    def difference(self, model: str, baseline: str, index: int) -> Row:
        a, b = self.values[model][index], self.values[baseline][index]
        if a.value is None or b.value is None:
            value = Score(None, a.reason if a.value is None else b.reason)
        else:
            value = Score(a.value - b.value)
        bounds = self._interval(self.replicates[model][index] - self.replicates[baseline][index], value)
        return {
            "model": model,
            "baseline": baseline,
            **self._common(index),
            "value": value.value,
            "ci_low": bounds.low,
            "ci_high": bounds.high,
            "reason": value.reason or bounds.reason,
        }

    def _common(self, index: int) -> Row:
        targets, binary = self.predictions.targets, len(self.predictions.answers) == 2
        return {
            "task": self.predictions.task,
            "role": self.predictions.role,
            "metric": METRICS[index].name,
            "n": len(targets),
            "num_positive": int((targets == 1).sum()) if binary else None,
            "higher_is_better": METRICS[index].higher_is_better,
        }

    def _interval(self, values: np.ndarray, value: Score) -> Interval:
        if value.value is None:
            return Interval(None, None, len(values), value.reason)
        return interval(values, len(set(self.predictions.patients)), self.settings)

    def _resample(self, seed: int) -> dict[str, list[np.ndarray]]:
        """Replicates per model and metric; all NaN where the metric itself is not defined."""
        size, targets = self.settings.num_resamples, self.predictions.targets
        out = {name: [np.full(size, math.nan) for _ in METRICS] for name in self.models}
        if len(targets) == 0:
            return out
        start = 0
        for weights in resample_weights(self.predictions.patients, size, seed, self.predictions.task, "bootstrap"):
            stop = start + len(weights)
            for name, probs in self.models.items():
                for index, metric in enumerate(METRICS):
                    if self.values[name][index].value is not None:
                        out[name][index][start:stop] = metric.weighted(targets, probs, weights)
            start = stop
        return out


def _finite_or_none(values: Scores) -> list[list[float | None]]:
    return [[float(p) if math.isfinite(p) else None for p in row] for row in values]
