"""Checks of the tiny LLM's pre-training, on text that it was not trained on.

They are perplexity, closed questions by the likelier of the two answers, and open questions by greedy answers. The last
are compared with the best single answer to all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from medfed.evaluation.text_metrics import exact_match, token_f1, words
from medfed.llm.prompt import ANSWER, CUE, QUESTION
from medfed.llm.tiny.cases import NO, YES, ClosedCase
from medfed.llm.tiny.open_cases import OpenCase

PAD, START, END = 0, 1, 2
CHECK_BATCH = 50
MAX_ANSWER = 12
"""Tokens after which a greedy answer is cut off."""


@runtime_checkable
class Case(Protocol):
    """A closed or an open case."""

    @property
    def context(self) -> str:
        """The text before the question."""
        ...

    @property
    def question(self) -> str:
        """The question."""
        ...

    @property
    def answer(self) -> str:
        """The right answer."""
        ...


def stem(case: Case) -> str:
    """Return a case up to its answer as the LLM reads it: context and question in the layout of every prompt."""
    return f"{case.context}{QUESTION.format(question=case.question)}{CUE}"


def render(case: Case) -> str:
    """Return a case as the LLM reads it, with its answer."""
    return stem(case) + ANSWER.format(answer=case.answer)


def token_losses(
    model: LlamaForCausalLM, ids: Int[Tensor, "batch position"]
) -> tuple[Float[Tensor, " token"], Bool[Tensor, "batch next"]]:
    """Return the loss of every real token, and the places of those tokens in ``ids[:, 1:]``.

    Rows are padded on the right. Causal attention never reads the padding, so no mask is needed.
    """
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    target = ids[:, 1:]
    real = target != PAD
    return F.cross_entropy(model.lm_head(hidden[real]), target[real], reduction="none"), real


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, rows: Sequence[Sequence[int]]) -> float:
    """Return exp of the mean loss per token of ``rows``."""
    total, count = 0.0, 0
    for start in range(0, len(rows), CHECK_BATCH):
        losses, _ = token_losses(model, padded(rows[start : start + CHECK_BATCH]))
        total, count = total + float(losses.sum()), count + len(losses)
    return math.exp(total / count)


@torch.no_grad()
def check_closed(model: LlamaForCausalLM, tokenizer: Tokenizer, cases: Sequence[ClosedCase]) -> dict[str, Any]:
    """Answer closed questions by the likelier of the two answers."""
    yes_id, no_id = (tokenizer.encode(ANSWER.format(answer=answer)).ids[0] for answer in (YES, NO))
    margins: list[float] = []
    for start in range(0, len(cases), CHECK_BATCH):
        rows = _prompts(tokenizer, cases[start : start + CHECK_BATCH])
        hidden = model.model(input_ids=padded(rows), use_cache=False).last_hidden_state
        last = torch.tensor([len(row) - 1 for row in rows])
        logits = model.lm_head(hidden[torch.arange(len(rows)), last])
        margins += (logits[:, yes_id] - logits[:, no_id]).tolist()
    yes = np.array([case.answer == YES for case in cases])
    right = (np.array(margins) > 0) == yes
    kinds = np.array([case.kind for case in cases])
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float((right[yes].mean() + right[~yes].mean()) / 2),
        "majority": float(max(yes.mean(), 1 - yes.mean())),
        "n": len(cases),
        "by_kind": {str(kind): float(right[kinds == kind].mean()) for kind in np.unique(kinds)},
    }


def check_open(model: LlamaForCausalLM, tokenizer: Tokenizer, cases: Sequence[OpenCase]) -> dict[str, Any]:
    """Answer open questions greedily; compare with the best single answer, chosen in hindsight for each score."""
    texts, stopped = greedy(model, tokenizer, cases)
    answers, right = [words(text) for text in texts], [words(case.answer) for case in cases]
    exact = np.array([exact_match(true, given) for given, true in zip(answers, right, strict=True)])
    overlap = np.array([token_f1(true, given) for given, true in zip(answers, right, strict=True)])
    constants = sorted(set(right))
    groups = {"by_line": np.array([case.detail for case in cases]), "by_topic": np.array([case.kind for case in cases])}
    return {
        "exact_match": float(exact.mean()),
        "token_f1": float(overlap.mean()),
        "constant_exact_match": max(float(np.mean([exact_match(true, one) for true in right])) for one in constants),
        "constant_token_f1": max(float(np.mean([token_f1(true, one) for true in right])) for one in constants),
        "stopped": float(np.mean(stopped)),
        "n": len(cases),
        **{
            name: {str(one): float(overlap[group == one].mean()) for one in np.unique(group)}
            for name, group in groups.items()
        },
    }


@torch.no_grad()
def greedy(model: LlamaForCausalLM, tokenizer: Tokenizer, cases: Sequence[Case]) -> tuple[list[str], list[bool]]:
    """Return the greedy answers of at most ``MAX_ANSWER`` tokens, and which of them ended by themselves."""
    answers, stopped = [], []
    for start in range(0, len(cases), CHECK_BATCH):
        prompts = _prompts(tokenizer, cases[start : start + CHECK_BATCH])
        ids = padded(prompts, left=True)
        tails = model.generate(ids, attention_mask=(ids != PAD).long(), do_sample=False, max_new_tokens=MAX_ANSWER)[
            :, ids.shape[1] :
        ]
        answers += [text.strip() for text in tokenizer.decode_batch(tails.tolist(), skip_special_tokens=True)]
        stopped += (tails == END).any(1).tolist()
    return answers, stopped


def padded(rows: Sequence[Sequence[int]], *, left: bool = False) -> Int[Tensor, "batch position"]:
    """Join rows of ids, padded to the longest on the right, or on the ``left`` so that all end together."""
    longest = max(map(len, rows))
    gaps = [[PAD] * (longest - len(row)) for row in rows]
    return torch.tensor([[*gap, *row] if left else [*row, *gap] for row, gap in zip(rows, gaps, strict=True)])


def _prompts(tokenizer: Tokenizer, cases: Sequence[Case]) -> list[list[int]]:
    return [[START, *encoded.ids] for encoded in tokenizer.encode_batch([stem(case) for case in cases])]
