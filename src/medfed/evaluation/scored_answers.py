"""Open questions as a comparison over runs sees them: text metrics by part, beside constants that know the answers."""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np
from jaxtyping import Float

from medfed.evaluation.answer_scores import Said, constant_answers, said
from medfed.evaluation.answers import PARTS, AnswerPredictions, Part
from medfed.evaluation.measures import Measure
from medfed.evaluation.metrics import Score
from medfed.evaluation.text import TEXT_METRICS


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
