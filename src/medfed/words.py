"""Metrics of answers in words, each a number in [0, 1] per example that is averaged over examples.

Both sides, reference and prediction, are normalised alike and only for comparison (Rajpurkar et al. 2016, SQuAD): lower
case, no punctuation, no articles (a, an, the), split at blanks. No record is rewritten. A prediction without a word
left is wrong: 0 everywhere.

- Exact match: the same words in the same order.
- Token F1: harmonic mean of the shares of predicted and of reference words that the other side has, repeats counted.
- BLEU-1 (Papineni et al. 2002): share of predicted words that the reference has, repeats clipped, times the brevity
  penalty exp(1 − r/p) where the prediction is shorter (p < r words).
- ROUGE-L (Lin 2004): F-measure (β = 1) of the longest common subsequence.

Deviation: the paper does not define its BLEU-1; this one is per example, without smoothing, and averaged.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter

Words = tuple[str, ...]
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def words(text: str) -> Words:
    """Return the normalised words of ``text``."""
    return tuple(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(reference: Words, answer: Words) -> float:
    """1 if both are the same words, of which there is at least one."""
    return float(bool(answer) and reference == answer)


def token_f1(reference: Words, answer: Words) -> float:
    """Harmonic mean of precision and recall of the words as bags."""
    common = _overlap(reference, answer)
    return 2 * common / (len(reference) + len(answer)) if common else 0.0


def bleu1(reference: Words, answer: Words) -> float:
    """Clipped unigram precision times brevity penalty."""
    if not answer:
        return 0.0
    penalty = math.exp(min(0.0, 1 - len(reference) / len(answer)))
    return penalty * _overlap(reference, answer) / len(answer)


def rouge_l(reference: Words, answer: Words) -> float:
    """F-measure of the longest common subsequence."""
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
