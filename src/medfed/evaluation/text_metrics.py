"""Metrics of answers in words, each a number in [0, 1] per example that is averaged over examples.

Reference and prediction are normalised alike, for comparison only (Rajpurkar et al. 2016, SQuAD). The text is in lower
case, without punctuation and articles (a, an, the), split at blanks. A Chinese character is a word. No record is
rewritten. A prediction without a word left is wrong: 0 everywhere.

Deviation: the paper does not define its BLEU-1; this one is per example, without smoothing, and averaged.

Corpus BLEU is counted as sacreBLEU does (arXiv:1804.08771), from counts per example, so resamples need no second one.

The score is 0 to 100, on raw text in lower case; :func:`signature` says how. Answers of a few words have hardly any
4-gram. So the score is near 0 for sets of short answers, and 0 where no answer has four words. Token F1 says more.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float
from sacrebleu.metrics.bleu import BLEU

Words = tuple[str, ...]
CORPUS_BLEU = "sacrebleu"
TEXT_METRICS = {
    "token_f1": "Token F1",
    "exact_match": "Exact match",
    "bleu1": "BLEU-1",
    "rouge_l": "ROUGE-L",
    CORPUS_BLEU: "sacreBLEU",
}
"""Metrics by name in ``scores.json``, with their titles; more is better."""
ORDERS = 4
"""n-grams of one to four words."""
_PUNCTUATION = str.maketrans("", "", string.punctuation + "，。？！、；：")


def words(text: str) -> Words:
    """Return the normalised words of ``text``."""
    plain = re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION))
    return tuple(re.sub(r"[\u4e00-\u9fff]", r" \g<0> ", plain).split())


def exact_match(reference: Words, answer: Words) -> float:
    """1 if both are the same words, of which there is at least one."""
    return float(bool(answer) and reference == answer)


def token_f1(reference: Words, answer: Words) -> float:
    """Harmonic mean of the shares of predicted and of reference words that the other side has, repeats counted."""
    common = _overlap(reference, answer)
    return 2 * common / (len(reference) + len(answer)) if common else 0.0


def bleu1(reference: Words, answer: Words) -> float:
    """Share of predicted words that the reference has, repeats clipped, times a penalty (Papineni et al. 2002).

    The brevity penalty is exp(1 − r/p) where the prediction is shorter (p < r words).
    """
    if not answer:
        return 0.0
    penalty = math.exp(min(0.0, 1 - len(reference) / len(answer)))
    return penalty * _overlap(reference, answer) / len(answer)


def rouge_l(reference: Words, answer: Words) -> float:
    """F-measure (β = 1) of the longest common subsequence (Lin 2004)."""
    common = longest_common_subsequence(reference, answer)
    return 2 * common / (len(reference) + len(answer)) if common else 0.0


def longest_common_subsequence(a: Words, b: Words) -> int:
    """Return the length of the longest sequence of words that stands in both, gaps allowed."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = row
        row = [0]
        for place, other in enumerate(b):
            row.append(before[place] + 1 if word == other else max(before[place + 1], row[-1]))
    return row[-1]


def _overlap(reference: Words, answer: Words) -> int:
    return (Counter(reference) & Counter(answer)).total()


MEANS = {"token_f1": token_f1, "exact_match": exact_match, "bleu1": bleu1, "rouge_l": rouge_l}
"""Metrics that are means over examples, by their name in ``scores.json``."""


def per_example(references: Sequence[str], answers: Sequence[str]) -> dict[str, Float[np.ndarray, " example"]]:
    """Return every metric of :data:`MEANS` for every example."""
    pairs = [(words(reference), words(answer)) for reference, answer in zip(references, answers, strict=True)]
    return {name: np.array([metric(*pair) for pair in pairs], dtype=np.float64) for name, metric in MEANS.items()}


@cache
def signature() -> str:
    """Return sacreBLEU's statement of its version and settings."""
    metric = BLEU(lowercase=True)
    metric.corpus_score(["a"], [["a"]])
    return str(metric.get_signature())


def statistics(references: Sequence[str], answers: Sequence[str]) -> Float[np.ndarray, "example 10"]:
    """Return per example: matching n-grams, answer n-grams (n = 1 to 4 each), answer length, reference length."""
    metric = BLEU(lowercase=True, effective_order=True)
    scores = [metric.sentence_score(answer, [text]) for text, answer in zip(references, answers, strict=True)]
    rows = [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores]
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
