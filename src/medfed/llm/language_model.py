"""An LLM alone, without patients: likelihoods of answers, log-odds, and answers in words."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float64
from torch import nn

from medfed.core.errors import StudyError
from medfed.llm.chat import Form
from medfed.llm.decoding import STOPS, Words
from medfed.llm.foundation import Foundation, load_foundation
from medfed.llm.likelihood import Store, log_likelihoods
from medfed.llm.obtain.cached import named_folder, read_fingerprint
from medfed.llm.obtain.known import KNOWN
from medfed.llm.prompt import TextTokenizer
from medfed.llm.trie import Continuation
from medfed.study.foundation import HuggingFaceSettings

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
        self, pairs: Sequence[tuple[str, str]], advance: Advance = lambda done, total: None, lead: str | None = None
    ) -> Float64[np.ndarray, " pair"]:
        """Return the log-likelihood of the answer in every (question, answer); ``lead`` replaces that of the form."""
        form = self.form if lead is None else replace(self.form, lead=lead)
        texts = continuations(pairs, form, self.foundation.tokenizer)
        return log_likelihoods(self._llm, self.foundation.windows, texts, self._store, advance)

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

    @torch.inference_mode()
    def answer(self, question: str, max_new_tokens: int = 64) -> Words:
        """Return the greedily decoded answer, by the LLM's own generation settings; deterministic.

        It ends with the LLM's turn. An LLM without a chat template goes on by itself: there a line break ends it too.
        """
        tokenizer, model = self.foundation.tokenizer, self._llm
        ids = torch.tensor([self.form.prompt(question, tokenizer)], device=self.foundation.table.device)
        options: dict[str, Any] = dict.fromkeys(("temperature", "top_p", "top_k"))
        options |= {"do_sample": False, "max_new_tokens": max_new_tokens, "attention_mask": torch.ones_like(ids)}
        ends = sorted(tokenizer.ends)
        made = model.generate(ids, **options, eos_token_id=ends or None, pad_token_id=min(ends, default=0))  # type: ignore[operator]
        new: list[int] = made[0, ids.shape[1] :].tolist()
        text = tokenizer.decode([token for token in new if token not in tokenizer.ends]).strip()
        cut = not (new and new[-1] in tokenizer.ends)
        for stop in STOPS if not tokenizer.has_template else ():
            cut, text = cut and stop not in text, text.partition(stop)[0]
        return Words(text.strip(), cut)


def continuations(pairs: Sequence[tuple[str, str]], form: Form, tokenizer: TextTokenizer) -> list[Continuation]:
    """Return the token ids of the answer behind the question, for every (question, answer)."""
    prompts = {question: form.prompt(question, tokenizer) for question in dict.fromkeys(q for q, _ in pairs)}
    texts = {answer: form.answer(answer, tokenizer) for answer in dict.fromkeys(a for _, a in pairs)}
    return [Continuation(prompts[question], texts[answer]) for question, answer in pairs]


def open_language_model(given: Path, cache: Path, dtype: str | None = None) -> LanguageModel:
    """Open an LLM by name or folder, for questions without patients; likelihoods are kept in ``cache``.

    Args:
        given: a name of ``medfed foundation list``, or the folder of a Hugging Face causal LM.
        cache: medfed's cache, which holds LLMs by name.
        dtype: of the weights; None takes that of the folder.

    Raises:
        StudyError: there is no such LLM, it changed since it was converted, or ``dtype`` is none.
    """
    folder = named_folder(given, None, cache)
    if folder is None or not folder.is_dir():
        hint = f"medfed foundation get NAME, with a name of: {', '.join(KNOWN)}; or the folder of a causal LM"
        raise StudyError("no LLM goes by this name", where=given, hint=hint)
    settings: dict[str, Any] = {"dtype": _dtype_of(folder) if dtype is None else dtype}
    known = HuggingFaceSettings.model_fields["dtype"].annotation.__args__  # type: ignore[union-attr]
    if settings["dtype"] not in known:
        raise StudyError(f"dtype {settings['dtype']!r}", where=given, hint=f"one of {', '.join(known)}")
    foundation = load_foundation(HuggingFaceSettings(**settings), cache=cache, path=given)
    return LanguageModel(foundation, cache=cache)


def odds_of(
    likelihoods: Float64[np.ndarray, "question answer"],
) -> Float64[np.ndarray, "question answer"]:
    """Return the log-odds of every answer against the others together, in nats."""
    count = likelihoods.shape[1]
    others = [np.logaddexp.reduce(np.delete(likelihoods, place, axis=1), axis=1) for place in range(count)]
    odds: Float64[np.ndarray, "question answer"] = likelihoods - np.stack(others, axis=1)
    return odds


def _dtype_of(folder: Path) -> str:
    """Return the dtype in which a folder holds its weights."""
    if (made := read_fingerprint(folder)) is not None:
        return made.dtype
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "float32"  # what is wrong with the folder, loading says
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _facts(foundation: Foundation) -> dict[str, str]:
    """Return what the bits of a likelihood depend on, the text aside."""
    table, threads = foundation.table, torch.get_num_threads()
    more = {"threads": str(threads)} if threads > 1 else {}
    return {
        **more,
        "weights": str(foundation.info.get("sha256") or foundation.fingerprint()),
        "dtype": str(table.dtype),
        "device": table.device.type,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
