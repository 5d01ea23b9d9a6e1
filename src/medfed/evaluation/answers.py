"""What models said about open questions, in words, and its records in ``predictions/<task>.jsonl``.

Questions and references are the dataset's own text: prediction files stay where the run is and are never published.

From answers in words to rows of ``scores.json``: text metrics for all, closed and open questions, constants beside.

Rows are those of :mod:`medfed.evaluation.evaluate` with ``part`` (which questions), ``answer`` (a constant's text) and
``signature`` (of sacreBLEU). Two constants bound what a model that ignores the example can reach, per part and with the
references known: ``constant-frequent`` gives the most frequent reference, ``constant-best`` the one of the highest mean
token F1. Where the reference is yes or no, the likelihoods of the two are scored too, as a closed task's; ``n`` then
counts those questions alone, which may be fewer than the dataset calls closed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from medfed.core.errors import RunError
from medfed.evaluation.bootstrap import Interval, interval, resample_weights
from medfed.evaluation.evaluate import Role, Row, TaskPredictions, hash_id, score_rows
from medfed.evaluation.text_metrics import (
    CORPUS_BLEU,
    MEANS,
    TEXT_METRICS,
    corpus_bleu,
    per_example,
    signature,
    statistics,
    token_f1,
    words,
)
from medfed.study.evaluation import EvaluationSettings

Part = Literal["all", "closed", "open"]
PARTS: tuple[Part, ...] = ("all", "closed", "open")


@dataclass(frozen=True)
class AnswerPredictions:
    """What the models said about the test examples of one open task.

    Attributes:
        task: task name.
        role: "unseen".
        options: the two answers whose likelihoods were compared.
        examples: example ids, raw or hashed.
        patients: patient of every example.
        questions: question of every example.
        references: reference answer of every example, as the dataset has it.
        closed: whether the dataset calls the question closed.
        targets: index of the reference in ``options``, −1 for another text.
        answers: model → decoded answers.
        scores: model → probability of every option.
    """

    task: str
    role: Role
    options: tuple[str, ...]
    examples: Sequence[str]
    patients: Sequence[str]
    questions: Sequence[str]
    references: Sequence[str]
    closed: Bool[np.ndarray, " example"]
    targets: Int[np.ndarray, " example"]
    answers: Mapping[str, Sequence[str]]
    scores: Mapping[str, Float[np.ndarray, "example option"]]

    def __post_init__(self) -> None:
        texts = (self.examples, self.patients, self.questions, self.references, *self.answers.values())
        lengths = {len(column) for column in texts} | {len(values) for values in (self.closed, *self.scores.values())}
        if lengths != {len(self.targets)}:
            raise RunError(
                f"{len(self.targets)} targets, but columns of {sorted(lengths)} examples",
                where=f"predictions of task {self.task}",
                hint="answer every test example, in the order of the references",
            )

    def mask(self, part: Part) -> Bool[np.ndarray, " example"]:
        """Which examples belong to ``part``."""
        return {"all": np.ones(len(self.closed), bool), "closed": self.closed, "open": ~self.closed}[part]


def answer_records(predictions: AnswerPredictions, salt: str) -> list[Row]:
    """Return one JSON-ready record per example, ids hashed with the run's ``salt``; texts stand as they are."""
    return [
        {
            "example": hash_id(salt, predictions.examples[row]),
            "patient": hash_id(salt, predictions.patients[row]),
            "question": predictions.questions[row],
            "reference": predictions.references[row],
            "closed": bool(predictions.closed[row]),
            "target": int(predictions.targets[row]),
            "answers": {model: texts[row] for model, texts in predictions.answers.items()},
            "scores": {model: [float(p) for p in values[row]] for model, values in predictions.scores.items()},
        }
        for row in range(len(predictions.targets))
    ]


def answers_from_records(
    task: str, role: Role, options: tuple[str, ...], records: Sequence[Mapping[str, Any]]
) -> AnswerPredictions:
    """Invert :func:`answer_records`; ids stay hashed."""
    examples, patients, questions, references = (
        [str(record[name]) for record in records] for name in ("example", "patient", "question", "reference")
    )
    first = records[0] if records else {"answers": {}, "scores": {}}
    return AnswerPredictions(
        task,
        role,
        options,
        examples,
        patients,
        questions,
        references,
        np.array([record["closed"] for record in records], dtype=bool),
        np.array([record["target"] for record in records], dtype=np.int64),
        {model: [str(record["answers"][model]) for record in records] for model in first["answers"]},
        {model: np.array([record["scores"][model] for record in records], np.float64) for model in first["scores"]},
    )


FREQUENT, BEST = "constant-frequent", "constant-best"
LIKELIHOOD_METRICS = ("auroc", "balanced_accuracy", "accuracy")
"""Metrics of the likelihood of yes against no."""


def answer_rows(
    tasks: Iterable[AnswerPredictions], seed: int, settings: EvaluationSettings | None = None
) -> dict[str, list[Row]]:
    """Score every open task.

    Returns:
        ``{"rows": […], "differences": […]}`` as :func:`medfed.evaluation.evaluate.score_rows` does; every model is
        compared with ``constant-best`` on the same resamples, beside the comparisons of ``settings``.
    """
    settings = settings or EvaluationSettings()
    found: dict[str, list[Row]] = {"rows": [], "differences": []}
    for predictions in tasks:
        scored = _ScoredAnswers(predictions, seed, settings)
        found["rows"] += scored.rows()
        found["differences"] += scored.differences()
        for name, rows in _likelihood_rows(predictions, seed, settings).items():
            found[name] += rows
    return found


def constant_answers(references: Sequence[str]) -> dict[str, str]:
    """Return the texts of the two constants; the first in the alphabet on a tie, and nothing without references."""
    counts = Counter(references)
    texts = sorted(counts)
    if not texts:
        return {}
    bags = [words(text) for text in texts]
    means = [sum(counts[text] * token_f1(bag, said) for text, bag in zip(texts, bags, strict=True)) for said in bags]
    best = max(range(len(texts)), key=means.__getitem__)
    return {FREQUENT: max(texts, key=counts.__getitem__), BEST: texts[best]}


class Said(NamedTuple):
    """A model's answers, counted: one row per example; ``constant`` is the text of a constant."""

    means: Float[np.ndarray, "example metric"]
    counts: Float[np.ndarray, "example 10"]
    single: bool
    constant: str | None

    def values(self, weights: Float[np.ndarray, "replicate example"]) -> Float[np.ndarray, "replicate metric"]:
        """Every metric of :data:`TEXT_METRICS`, NaN where no example has weight."""
        with np.errstate(invalid="ignore"):
            means = weights @ self.means / weights.sum(1, keepdims=True)
        found: np.ndarray = np.concatenate([means, corpus_bleu(self.counts, weights)[:, None]], 1)
        return found


def said(references: Sequence[str], answers: Sequence[str], constant: str | None = None) -> Said:
    """Count ``answers``; ``constant`` names the text that they all are."""
    means = per_example(references, answers)
    single = len({words(answer) for answer in answers}) == 1
    return Said(np.stack([means[name] for name in MEANS], 1), statistics(references, answers), single, constant)


class _ScoredAnswers:
    """Values and replicates of all models, parts and metrics of one task, from one set of resamples."""

    def __init__(self, predictions: AnswerPredictions, seed: int, settings: EvaluationSettings) -> None:
        self.predictions, self.settings = predictions, settings
        models = {model: said(predictions.references, texts) for model, texts in predictions.answers.items()}
        self.said = {(model, part): held for model, held in models.items() for part in PARTS}
        for part in PARTS:
            mine = [text for text, kept in zip(predictions.references, predictions.mask(part), strict=True) if kept]
            for model, text in constant_answers(mine).items():
                self.said[model, part] = said(predictions.references, [text] * len(predictions.references), text)
        ones = np.ones((1, len(predictions.targets)))
        self.values = {key: said.values(ones * predictions.mask(key[1]))[0] for key, said in self.said.items()}
        self.replicates = self._resample(seed)
        self.signature = signature()

    def rows(self) -> list[Row]:
        return [self._row(model, part, index) for model, part in self.said for index in range(len(TEXT_METRICS))]

    def differences(self) -> list[Row]:
        pairs = [(model, BEST) for model in self.predictions.answers]
        pairs += [pair for pair in self.settings.comparisons if set(pair) <= self.predictions.answers.keys()]
        return [
            self._difference(model, baseline, part, index)
            for model, baseline in pairs
            for part in PARTS
            if (baseline, part) in self.said
            for index in range(len(TEXT_METRICS))
        ]

    def _row(self, model: str, part: Part, index: int) -> Row:
        said = self.said[model, part]
        return {
            "model": model,
            **self._common(part, index),
            **self._measured(part, self.values[model, part][index], self.replicates[model, part][:, index]),
            "single_class": said.single,
            "answer": said.constant,
        }

    def _difference(self, model: str, baseline: str, part: Part, index: int) -> Row:
        value = self.values[model, part][index] - self.values[baseline, part][index]
        replicates = self.replicates[model, part][:, index] - self.replicates[baseline, part][:, index]
        common = {"model": model, "baseline": baseline, **self._common(part, index)}
        return {**common, **self._measured(part, value, replicates)}

    def _common(self, part: Part, index: int) -> Row:
        metric = list(TEXT_METRICS)[index]
        return {
            "task": self.predictions.task,
            "role": self.predictions.role,
            "part": part,
            "metric": metric,
            "n": int(self.predictions.mask(part).sum()),
            "num_positive": None,
            "higher_is_better": True,
            "signature": self.signature if metric == CORPUS_BLEU else None,
        }

    def _measured(self, part: Part, value: float, replicates: Float[np.ndarray, " replicate"]) -> Row:
        if np.isnan(value):
            reason = "no examples" if part == "all" else f"no {part} questions"
            return {"value": None, "ci_low": None, "ci_high": None, "reason": reason}
        mask = self.predictions.mask(part)
        patients = {patient for patient, kept in zip(self.predictions.patients, mask, strict=True) if kept}
        bounds: Interval = interval(replicates, len(patients), self.settings)
        return {"value": float(value), "ci_low": bounds.low, "ci_high": bounds.high, "reason": bounds.reason}

    def _resample(self, seed: int) -> dict[tuple[str, Part], Float[np.ndarray, "replicate metric"]]:
        parts: dict[tuple[str, Part], list[np.ndarray]] = {key: [] for key in self.said}
        if not len(self.predictions.targets):
            nothing = np.full((self.settings.num_resamples, len(TEXT_METRICS)), np.nan)
            return dict.fromkeys(self.said, nothing)
        key = (seed, self.predictions.task, "bootstrap")
        for weights in resample_weights(self.predictions.patients, self.settings.num_resamples, *key):
            for (model, part), said in self.said.items():
                parts[model, part].append(said.values(weights * self.predictions.mask(part)))
        return {key: np.concatenate(found) for key, found in parts.items()}


def _likelihood_rows(predictions: AnswerPredictions, seed: int, settings: EvaluationSettings) -> dict[str, list[Row]]:
    """Score the likelihood of yes against no where the reference is one of them."""
    rows = [row for row, target in enumerate(predictions.targets.tolist()) if target >= 0]
    if not rows:
        return {"rows": [], "differences": []}
    asked = TaskPredictions(
        predictions.task,
        predictions.role,
        predictions.options,
        [predictions.examples[row] for row in rows],
        [predictions.patients[row] for row in rows],
        predictions.targets[rows],
        {model: values[rows] for model, values in predictions.scores.items()},
    )
    found = score_rows([asked], seed, settings)
    return {
        name: [{**row, "part": "closed"} for row in part if row["metric"] in LIKELIHOOD_METRICS]
        for name, part in found.items()
    }
