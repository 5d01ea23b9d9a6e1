"""Corpus BLEU, as sacreBLEU counts it (Post 2018), from counts per example, so that resamples need no second count.

The score is 0 to 100, on raw text in lower case; :func:`signature` says how. Answers of a few words have hardly any
4-gram, so it is near 0 for sets of short answers and 0 where no answer has four words: read it beside token F1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from sacrebleu.metrics.bleu import BLEU

ORDERS = 4
"""n-grams of one to four words."""


def signature() -> str:
    """Return sacreBLEU's statement of its version and settings."""
    metric = BLEU(lowercase=True)
    metric.corpus_score(["a"], [["a"]])
    return str(metric.get_signature())


def statistics(references: Sequence[str], answers: Sequence[str]) -> Float[np.ndarray, "example 10"]:
    """Return per example: matching n-grams, answer n-grams (n = 1 to 4 each), answer length, reference length."""
    metric = BLEU(lowercase=True, effective_order=True)
    found = [metric.sentence_score(answer, [text]) for text, answer in zip(references, answers, strict=True)]
    rows = [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in found]
    return np.array(rows, dtype=np.float64).reshape(len(rows), 2 * ORDERS + 2)


def corpus_bleu(
    stats: Float[np.ndarray, "example 10"], weights: Float[np.ndarray, "replicate example"]
) -> Float[np.ndarray, " replicate"]:
    """Return the corpus BLEU of every row of example weights; NaN where all weights are 0.

    Exponential smoothing: the k-th order without a match counts as 2⁻ᵏ matches.
    """
    sums = weights @ stats
    matches, totals = sums[:, :ORDERS], sums[:, ORDERS : 2 * ORDERS]
    answer_length, reference_length = sums[:, -2], sums[:, -1]
    smoothed = np.where(matches > 0, matches, 0.5 ** (matches == 0).cumsum(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(smoothed / totals).mean(1)
        penalty = np.minimum(0.0, 1 - reference_length / answer_length)
        score: np.ndarray = 100 * np.exp(logs + penalty)
    score[(matches.sum(1) == 0) | (totals == 0).any(1)] = 0.0
    score[weights.sum(1) == 0] = np.nan
    return score
