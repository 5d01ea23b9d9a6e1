"""An LLM alone, without patients: likelihoods of answers, log-odds, and answers in words."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from jaxtyping import Float64
from torch import nn

from medfed.llm.chat import Form
from medfed.llm.foundation import Foundation
from medfed.llm.likelihood import Store, log_likelihoods
from medfed.llm.trie import Continuation

STORE = "likelihoods.sqlite"
"""File, in the cache folder, of all likelihoods that were computed."""
Advance = Callable[[int, int], None]


class LanguageModel:
    """A foundation, or one with adapters; questions have the form that it was taught.

    Args:
        foundation: the frozen LLM and its tokenizer.
        form: how questions are put.
        cache: folder in which likelihoods are kept; None keeps nothing. Leave it out for an LLM that is trained.
        llm: the LLM with its adapters; by default the foundation itself.
    """

    def __init__(
        self,
        foundation: Foundation,
        *,
        form: Form | None = None,
        cache: Path | None = None,
        llm: nn.Module | None = None,
    ) -> None:
        self.foundation, self.form = foundation, form or Form()
        self._llm = foundation.model if llm is None else llm
        self._store = None if cache is None else Store(cache / STORE, _facts(foundation))

    def likelihood(
        self,
        questions: str | Sequence[str],
        answers: Sequence[str] = ("Yes", "No"),
        advance: Advance = lambda done, total: None,
    ) -> Float64[np.ndarray, "question answer"]:
        """Return the log-likelihood of every answer to every question.

        Args:
            questions: one or many; what many share at the beginning is computed once.
            answers: texts that are compared.
            advance: is given the parts done and their number.
        """
        listed = [questions] if isinstance(questions, str) else list(questions)
        return self.likelihoods([(question, answer) for question in listed for answer in answers], advance).reshape(
            len(listed), len(answers)
        )

    def likelihoods(
        self, pairs: Sequence[tuple[str, str]], advance: Advance = lambda done, total: None
    ) -> Float64[np.ndarray, " pair"]:
        """Return the log-likelihood of the answer in every (question, answer)."""
        tokenizer = self.foundation.tokenizer
        prompts = {question: self.form.prompt(question, tokenizer) for question in dict.fromkeys(q for q, _ in pairs)}
        texts = {answer: self.form.answer(answer, tokenizer) for answer in dict.fromkeys(a for _, a in pairs)}
        continuations = [Continuation(prompts[question], texts[answer]) for question, answer in pairs]
        return log_likelihoods(self._llm, self.foundation.windows, continuations, self._store, advance)

    def num_tokens(self, answer: str) -> int:
        """Return how many tokens an answer has."""
        return len(self.form.answer(answer, self.foundation.tokenizer))

    def log_odds(
        self,
        questions: str | Sequence[str],
        answers: tuple[str, str] = ("Yes", "No"),
        advance: Advance = lambda done, total: None,
    ) -> Float64[np.ndarray, " question"]:
        """Return the log-odds of the first answer against the second, question by question."""
        values = self.likelihood(questions, answers, advance)
        odds: Float64[np.ndarray, " question"] = values[:, 0] - values[:, 1]
        return odds


def _facts(foundation: Foundation) -> dict[str, str]:
    """Return what the bits of a likelihood depend on, the text aside."""
    table = foundation.table
    return {
        "weights": str(foundation.info.get("sha256") or foundation.fingerprint()),
        "dtype": str(table.dtype),
        "device": table.device.type,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
