"""Answers in words, by the metrics of :mod:`medfed.evaluation.text_metrics`: of a trained decoder, or of an LLM.

Two constants know the references. ``constant-frequent`` is the most frequent reference, and ``constant-best`` the one
of the highest mean token F1. They bound the score of a model that ignores the example.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from medfed.evaluation.metrics import Score
from medfed.evaluation.scorers.base import MetricInfo, Scored, Scorer, Values, Weights
from medfed.evaluation.scorers.means import PerExample
from medfed.evaluation.text_metrics import (
    CORPUS_BLEU,
    MEANS,
    TEXT_METRICS,
    bleu1,
    corpus_bleu,
    per_example,
    statistics,
    token_f1,
    words,
)
from medfed.records.schema import Json

FREQUENT, BEST = "constant-frequent", "constant-best"
PARTS = ("open", "closed", "all")
"""A model can be good at yes and no and know nothing else, so tables pool them only next to published numbers."""


class Generated(PerExample):
    """Texts of a trained decoder, and what they should be. An empty response is wrong.

    Exact match compares the texts but for case and blanks: words lose their punctuation, and 1.5 would equal 15.
    """

    name = "generation"
    metrics = tuple(MetricInfo(name, TEXT_METRICS[name]) for name in ("exact_match", "token_f1", "bleu1"))
    primary = "exact_match"

    def numbers(self, truth: Json, response: Json) -> dict[str, float | None]:
        """Return one example's metrics."""
        reference, answer, given = words(truth), words(response), response.lower().split()
        exact = float(bool(given) and truth.lower().split() == given)
        return {"exact_match": exact, "token_f1": token_f1(reference, answer), "bleu1": bleu1(reference, answer)}


class ScoredTexts(Scored):
    """Answers in words, counted: a row per example."""

    def __init__(self, references: Sequence[str], answers: Sequence[str]) -> None:
        self._means: Float[np.ndarray, "example metric"] = np.stack([*per_example(references, answers).values()], 1)
        self._counts = statistics(references, answers)
        self.num_examples = len(references)
        self.single_class = len({words(answer) for answer in answers}) == 1

    def values(self, weights: Weights) -> Values:
        """Return every metric; NaN where no example has weight."""
        with np.errstate(invalid="ignore"):
            means = weights @ self._means / weights.sum(1, keepdims=True)
        metrics = {name: means[:, place] for place, name in enumerate(MEANS)}
        return {**metrics, CORPUS_BLEU: corpus_bleu(self._counts, weights)}


class ScoredPart(Scored):
    """A part of the questions."""

    def __init__(self, whole: Scored, part: str, mask: Bool[np.ndarray, " example"]) -> None:
        self._whole, self._part, self._mask = whole, part, mask
        self.num_examples, self.single_class = whole.num_examples, whole.single_class

    def values(self, weights: Weights) -> Values:
        """Return every metric on the part."""
        return self._whole.values(weights * self._mask)

    @cached_property
    def points(self) -> dict[str, Score]:
        """Every metric on the part, each question counted once."""
        reason = "no examples" if self._part == "all" else f"no {self._part} questions"
        values = self.values(np.ones((1, self.num_examples)))
        return {name: Score(None, reason) if np.isnan(v[0]) else Score(float(v[0])) for name, v in values.items()}


class Questions(Scorer):
    """Truth: ``reference``, ``closed``, ``target``. Response: ``text`` and the ``probabilities`` of yes and no."""

    name = "questions"
    metrics = tuple(
        MetricInfo(name, title, high=100.0 if name == CORPUS_BLEU else 1.0) for name, title in TEXT_METRICS.items()
    )
    primary = "token_f1"
    parts = PARTS
    baseline = BEST

    def scored(self, truths: Sequence[Json], responses: Sequence[Json]) -> Scored:
        """Count one model's answers."""
        return ScoredTexts([truth["reference"] for truth in truths], [response["text"] for response in responses])

    def mask(self, part: str | None, truths: Sequence[Json]) -> Bool[np.ndarray, " example"]:
        """Return which questions belong to a part."""
        closed = np.array([truth["closed"] for truth in truths], bool)
        return {"closed": closed, "open": ~closed}.get(str(part), np.ones(len(closed), bool))

    def constants(self, truths: Sequence[Json], num_answers: int, answers: Sequence[str]) -> dict[str, Json]:
        """Return the two constants of :func:`constant_answers`."""
        return {name: {"text": text} for name, text in constant_answers([t["reference"] for t in truths]).items()}

    def identity(self, truth: Json) -> str:
        """Return the reference."""
        return str(truth["reference"])


def constant_answers(references: Sequence[str]) -> dict[str, str]:
    """Return the texts of the two constants; the first in the alphabet on a tie, and nothing without references."""
    counts = Counter(sorted(references))
    bags = {text: words(text) for text in counts}
    sums = {text: sum(n * token_f1(bags[other], bag) for other, n in counts.items()) for text, bag in bags.items()}
    return {FREQUENT: max(counts, key=counts.__getitem__), BEST: max(sums, key=sums.__getitem__)} if counts else {}
