"""Answers in words: exact match, token F1 and BLEU-1 (:mod:`medfed.evaluation.text_metrics`), a number per example.

Exact match compares the texts but for letter case and blanks: words lose their punctuation, and 1.5 would equal 15.
"""

from __future__ import annotations

from medfed.evaluation.kinds.base import Kind, KindMetric, PerExample
from medfed.evaluation.text_metrics import TEXT_METRICS, bleu1, token_f1, words
from medfed.tasks.base import Json


class Generation(PerExample):
    """Truth and response: texts. An empty response is wrong."""

    name = "generation"
    metrics = tuple(KindMetric(name, TEXT_METRICS[name]) for name in ("exact_match", "token_f1", "bleu1"))
    primary = "exact_match"

    def numbers(self, truth: Json, response: Json) -> dict[str, float | None]:
        """Return one example's metrics."""
        reference, answer = words(truth), words(response)
        return {
            "exact_match": float(bool(plain(response)) and plain(truth) == plain(response)),
            "token_f1": token_f1(reference, answer),
            "bleu1": bleu1(reference, answer),
        }


def plain(text: str) -> str:
    """Return ``text`` in lower case with single blanks."""
    return " ".join(text.lower().split())


KINDS: tuple[Kind, ...] = (Generation(),)
