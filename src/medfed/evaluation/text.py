"""The metrics of answers in words, by name, and their values per example; :mod:`medfed.words` defines each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from medfed.words import bleu1, exact_match, rouge_l, token_f1, words

MEANS = {"token_f1": token_f1, "exact_match": exact_match, "bleu1": bleu1, "rouge_l": rouge_l}
"""Metrics that are means over examples, by their name in ``scores.json``."""

CORPUS_BLEU = "sacrebleu"
TEXT_METRICS = {
    "token_f1": "Token F1",
    "exact_match": "Exact match",
    "bleu1": "BLEU-1",
    "rouge_l": "ROUGE-L",
    CORPUS_BLEU: "sacreBLEU",
}
"""Metrics by name in ``scores.json``, with their titles; more is better."""


def per_example(references: Sequence[str], answers: Sequence[str]) -> dict[str, Float[np.ndarray, " example"]]:
    """Return every metric of :data:`MEANS` for every example."""
    pairs = [(words(reference), words(answer)) for reference, answer in zip(references, answers, strict=True)]
    return {name: np.array([metric(*pair) for pair in pairs], dtype=np.float64) for name, metric in MEANS.items()}
