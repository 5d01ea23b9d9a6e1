"""The meaning of findings for a question by an LLM: it answers once, and no patient enters it.

The LLM answers whether a finding is a sign of a clinical picture, in every wording. The answer counts by the log-odds
of "Yes" against "No". A finding that gets a yes for every picture tells nothing of this one. So its mean over a list of
reference pictures is taken off. The strongest weights are kept, or all of them pass a softplus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from medfed.study.words import WordsSettings

if TYPE_CHECKING:
    from medfed.llm.language_model import LanguageModel

Odds = Float[np.ndarray, " finding"]
Ask = Callable[[str], Odds]
"""Returns how much every finding supports a picture."""
MOST_REASONS = 3
"""Findings that an answer names."""
LEAST_OF_A_REASON = 0.1


def querier(
    model: LanguageModel, findings: Sequence[str], wordings: Sequence[str], advance: Callable[[], None] = lambda: None
) -> Ask:
    """Return the function that puts a picture to ``model``: the mean log-odds over all wordings.

    A picture's questions go together, so their likelihoods are found in the cache whatever the other pictures are.
    """
    kept: dict[str, Odds] = {}

    def ask(picture: str) -> Odds:
        if picture not in kept:
            by_wording = [
                model.log_odds([wording.format(finding=finding, picture=picture) for finding in findings])
                for wording in wordings
            ]
            kept[picture] = np.mean(by_wording, axis=0)
            advance()
        return kept[picture]

    return ask


def about(ask: Ask, picture: str, references: Sequence[str]) -> Odds:
    """Return how much every finding supports ``picture``, more than for the reference pictures on the mean."""
    if not references:
        return ask(picture)
    return np.asarray(ask(picture) - np.mean([ask(reference) for reference in references], axis=0))


def weights_of(odds: Odds, usable: Bool[np.ndarray, " finding"], settings: WordsSettings) -> Odds:
    """Return the weights of all findings, 0 of those that do not count.

    ``strongest`` keeps the ``keep`` share of the ``usable`` ones that support the picture most. None is kept that
    counts against it. A weight is the odds to the ``power``. ``softplus`` is ln(1 + e^odds) of all usable ones. The
    ``floor`` share of the largest weight is added to every usable one.
    """
    if settings.weigh == "softplus":
        weights = np.logaddexp(0.0, odds)
    else:
        most = max(1, round(settings.keep * int(usable.sum())))
        ranked = np.argsort(np.where(usable, -odds, np.inf), kind="stable")[:most]
        weights = np.zeros(len(odds))
        weights[ranked] = np.maximum(odds[ranked], 0.0) ** settings.power
    largest = float(np.where(usable, weights, 0.0).max(initial=0.0))
    return np.where(usable, weights + settings.floor * largest, 0.0)


def answered(weights: Odds, strengths: Float[np.ndarray, "example finding"]) -> Float[np.ndarray, " example"]:
    """Return the weighted sum of what holds for every patient; what was not observed counts nothing."""
    sums: Float[np.ndarray, " example"] = np.nan_to_num(strengths) @ weights
    return sums


def reason(names: Sequence[str], weights: Odds, strengths: Float[np.ndarray, " finding"]) -> tuple[str, ...]:
    """Return the findings that add most to one patient's answer, at most :data:`MOST_REASONS`, the strongest first.

    Those with less than :data:`LEAST_OF_A_REASON` of the largest weight are no reason.
    """
    counts = weights >= LEAST_OF_A_REASON * weights.max(initial=0.0)
    shares = np.where(counts, weights * np.nan_to_num(strengths), 0.0)
    first = np.argsort(-shares, kind="stable")[:MOST_REASONS]
    return tuple(names[number] for number in first if shares[number] > 0)


@dataclass(frozen=True)
class Likelihood:
    """A logistic function of a score, one half at the median of public patients, whose middle half spans one unit."""

    middle: float
    width: float

    @classmethod
    def of(cls, public: Float[np.ndarray, " patient"]) -> Likelihood:
        """Return the function that public patients' scores define."""
        low, middle, high = np.percentile(public, (25, 50, 75)) if len(public) else (0.0, 0.0, 1.0)
        return cls(float(middle), float(high - low) or float(np.std(public)) or 1.0)

    def __call__(self, scores: Float[np.ndarray, " example"]) -> list[list[float]]:
        """Return the probabilities of no and yes."""
        positive = 1 / (1 + np.exp(-(scores - self.middle) / self.width))
        both: list[list[float]] = np.stack([1 - positive, positive], axis=1).tolist()
        return both


def other_picture(pictures: Sequence[str], picture: str) -> str | None:
    """Return the picture after ``picture`` in the list, the first after the last; None if there is no other."""
    others = [one for one in pictures if one != picture]
    if not others or picture not in pictures:
        return others[0] if others else None
    return pictures[(pictures.index(picture) + 1) % len(pictures)]


def strongest(names: Sequence[str], weights: Odds) -> Mapping[str, float]:
    """Return finding → weight of those that count, the strongest first."""
    order = np.argsort(-weights, kind="stable")
    return {names[number]: float(weights[number]) for number in order if weights[number] > 0}
