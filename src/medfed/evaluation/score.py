"""From responses to the rows of ``scores.json``: every model, metric, part and interval, constants among the models.

Every task has one set of resamples of its patients, drawn from (seed, task), which all its models share. So differences
are paired: the injected LLM minus each other model, and the pairs that the settings name. Where examples are tested
at clients, a row has a value per client and names the worst. Constants, the federated-only model and the controls
(:mod:`medfed.evaluation.controls`) are baselines that the FedKIM paper leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np

from medfed.evaluation.bootstrap import interval, resample_weights
from medfed.evaluation.controls import leading
from medfed.evaluation.metrics import Score
from medfed.evaluation.responses import TaskResponses, is_constant
from medfed.evaluation.scorers.base import MetricInfo, Replicates, Values
from medfed.evaluation.scorers.choice import Choice
from medfed.evaluation.scorers.words import Questions
from medfed.evaluation.text_metrics import CORPUS_BLEU, signature
from medfed.records.schema import Difference, Prediction, ScoreFile, ScoreRow, TaskFacts
from medfed.study.evaluation import EvaluationSettings

LIKELIHOOD_METRICS = ("auroc", "balanced_accuracy", "accuracy")
"""Metrics of the likelihood of yes against no, of open questions whose reference is one of them."""


def score_run(
    predictions: Iterable[tuple[str, TaskFacts, Sequence[Prediction]]],
    seed: int,
    settings: EvaluationSettings | None = None,
) -> ScoreFile:
    """Score every task of a run, given its name, how it is scored, and the lines of its prediction file."""
    tasks = [TaskResponses.of(*parts) for parts in predictions]
    scored = [score_task(responses, seed, settings) for responses in tasks]
    return ScoreFile(
        tasks={responses.task: responses.facts for responses in tasks},
        rows=tuple(row for rows, _ in scored for row in rows),
        differences=tuple(row for _, differences in scored for row in differences),
    )


def score_task(
    responses: TaskResponses, seed: int, settings: EvaluationSettings | None = None
) -> tuple[list[ScoreRow], list[Difference]]:
    """Return the rows and the paired differences of one task.

    A row's value is None with a reason where the metric is not defined.
    """
    table = _Table(responses, seed, settings or EvaluationSettings())
    rows, differences = table.rows(), table.differences()
    if isinstance(responses.scorer, Questions) and (choice := likelihoods(responses)) is not None:
        more = _Table(choice, seed, settings or EvaluationSettings())
        closed = {"part": "closed", "primary": False}
        rows += [row.model_copy(update=closed) for row in more.rows() if row.metric in LIKELIHOOD_METRICS]
        gaps = [gap for gap in more.differences() if gap.metric in LIKELIHOOD_METRICS]
        differences += [gap.model_copy(update=closed) for gap in gaps]
    return rows, differences


def likelihoods(responses: TaskResponses) -> TaskResponses | None:
    """Return the closed questions among open ones as a choice between yes and no; None if there are none."""
    targets = [truth["target"] for truth in responses.truths]
    closed = [target >= 0 for target in targets]
    if not any(closed):
        return None
    given = {model: compress(column, closed) for model, column in responses.responses.items()}
    return TaskResponses(
        responses.task,
        responses.facts.model_copy(update={"kind": "classification"}),
        list(compress(responses.examples, closed)),
        list(compress(responses.patients, closed)),
        None,
        list(compress(targets, closed)),
        {model: [response["probabilities"] for response in column] for model, column in given.items()},
    )


class _Table:
    """Values and replicates of all models, parts and metrics of one task, from one set of resamples."""

    def __init__(self, responses: TaskResponses, seed: int, settings: EvaluationSettings) -> None:
        self._responses, self._settings = responses, settings
        self._metrics = responses.scorer.metrics
        self._replicates = self._resample(seed)

    def rows(self) -> list[ScoreRow]:
        return [self._row(*key, metric) for key in self._responses.models for metric in self._metrics]

    def differences(self) -> list[Difference]:
        models, answered, constant = self._responses.models, self._responses.answered, self._responses.scorer.baseline
        pairs = [(model, constant) for model, _ in models if constant and not is_constant(model)]
        first = leading(model for model, _ in models)
        pairs += [(first, model) for model, _ in models if model != first and not is_constant(model)]
        return [
            self._difference(model, baseline, part, metric)
            for model, baseline in dict.fromkeys([*pairs, *self._settings.comparisons])
            for part in self._responses.masks
            if (model, part) in models and (baseline, part) in models
            if np.array_equal(answered[model], answered[baseline])
            for metric in self._metrics
        ]

    def _row(self, model: str, part: str | None, metric: MetricInfo) -> ScoreRow:
        responses = self._responses
        value = responses.score(model, part, metric.name)
        constant = responses.constants.get((model, part))
        facts = self._common(model, part, metric) | self._worst(model, part, metric)
        facts |= self._interval(model, part, value, self._replicates[model, part][metric.name])
        answer = constant["text"] if isinstance(constant, dict) else None
        return ScoreRow(**facts, single_class=responses.single_class(model, part), answer=answer)

    def _difference(self, model: str, baseline: str, part: str | None, metric: MetricInfo) -> Difference:
        a, b = (self._responses.score(name, part, metric.name) for name in (model, baseline))
        if a.value is None or b.value is None:
            value = Score(None, a.reason if a.value is None else b.reason)
        else:
            value = Score(a.value - b.value)
        replicates = self._replicates[model, part][metric.name] - self._replicates[baseline, part][metric.name]
        facts = self._common(model, part, metric) | self._interval(model, part, value, replicates)
        return Difference(baseline=baseline, **facts)

    def _common(self, model: str, part: str | None, metric: MetricInfo) -> dict[str, Any]:
        responses, at_clients = self._responses, self._responses.clients is not None
        binary = isinstance(responses.scorer, Choice) and responses.num_answers == 2
        return {
            "model": model,
            "task": responses.task,
            "role": responses.facts.role,
            "part": part,
            "metric": metric.name,
            "title": metric.title,
            "primary": metric.name == responses.scorer.primary and part == responses.leading,
            "higher_is_better": metric.higher_is_better,
            "n": int((responses.answered[model] & responses.masks[part]).sum()),
            "num_patients": self._num_patients(model, part) if at_clients else None,
            "num_positive": sum(truth == 1 for truth in responses.truths) if binary and not at_clients else None,
            "signature": signature() if metric.name == CORPUS_BLEU else None,
        }

    def _interval(self, model: str, part: str | None, value: Score, replicates: Replicates) -> dict[str, Any]:
        if value.value is None:
            return {"value": None, "reason": value.reason}
        bounds = interval(replicates, self._num_patients(model, part), self._settings)
        reason = value.reason or bounds.reason
        return {"value": value.value, "ci_low": bounds.low, "ci_high": bounds.high, "reason": reason}

    def _num_patients(self, model: str, part: str | None) -> int:
        counted = self._responses.answered[model] & self._responses.masks[part]
        return len(set(compress(self._responses.patients, counted)))

    def _worst(self, model: str, part: str | None, metric: MetricInfo) -> dict[str, Any]:
        """Return the value on every client's own examples and the worst, or the worst value of a group's members."""
        responses = self._responses
        if responses.clients:
            points_of = responses.by_client.get(model, {})
        else:
            points_of = {name: responses.scored[name, part].points for name in responses.groups.get(model, ())}
        values = {name: points[metric.name].value for name, points in points_of.items()}
        worst, client = worst_of(values, higher_is_better=metric.higher_is_better)
        return {"clients": values, "worst": worst, "worst_client": client} if responses.clients else {"worst": worst}

    def _resample(self, seed: int) -> dict[tuple[str, str | None], dict[str, Replicates]]:
        """Return (model, part) → metric → replicates."""
        responses, size = self._responses, self._settings.num_resamples
        if not len(responses.examples):
            nothing = {metric.name: np.full(size, np.nan) for metric in self._metrics}
            return dict.fromkeys(responses.models, nothing)
        parts: dict[tuple[str, str | None], list[Values]] = {key: [] for key in responses.scored}
        for weights in resample_weights(responses.patients, size, seed, responses.task, "bootstrap"):
            for (model, part), scored in responses.scored.items():
                parts[model, part].append(scored.values(responses.weights_of(model, weights)))
        names = [metric.name for metric in self._metrics]
        single = {key: {n: np.concatenate([one[n] for one in held]) for n in names} for key, held in parts.items()}
        return {
            (model, part): {n: np.mean([single[one, part][n] for one in members], axis=0) for n in names}
            for (model, part), members in responses.models.items()
        }


def worst_of(values: Mapping[str, float | None], *, higher_is_better: bool) -> tuple[float | None, str | None]:
    """Return the worst defined value and whose it is; the first on a tie."""
    known = [(value, name) for name, value in values.items() if value is not None]
    worst = min if higher_is_better else max
    return worst(known, key=lambda pair: pair[0], default=(None, None))
