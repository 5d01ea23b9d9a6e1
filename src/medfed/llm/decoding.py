"""Greedy decoding behind embedded prompts: how the injected LLM answers an open question.

Prompts of different length are padded on the left. No position attends to padding or absent modalities, and these take
no position number. The key/value cache holds all keys; windows are in the mask. An answer ends at one of the LLM's end
tokens. One that is still running after ``max_new_tokens`` is cut, and marked so. The most likely token is taken at
every step (the lower id on a tie), so nothing is random. Rounding aside, an answer does not depend on the rest of the
batch.

An LLM without a chat template has no turns. Its answer also ends at a line break behind its first word, and where a
next question begins. In chat form both may stand in an answer.

Deviation: without a template, an answer also ends before a word that repeats the previous one. Closed answers are then
trained without an end, so an LLM that never saw an end decodes "Yes Yes Yes …".
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from medfed.llm.forward import run
from medfed.llm.foundation import Foundation
from medfed.llm.prompt import QUESTION, PromptBatch, TextTokenizer

STOPS = ("\n", QUESTION.partition("{")[0].strip())
"""Text that ends an answer of an LLM without a chat template."""


class Decoded(NamedTuple):
    """Token ids of an answer, without the token that ended it; ``cut``, it was still running at the limit."""

    ids: list[int]
    cut: bool


class Words(NamedTuple):
    """An answer in words, which may be empty; ``cut``, it was still running at the limit."""

    text: str
    cut: bool


def decode_greedily(
    llm: nn.Module, foundation: Foundation, prompts: PromptBatch, max_new_tokens: int, cache: object = None
) -> list[Decoded]:
    """Return every answer as token ids, and whether it was cut at the limit; nothing is trained here.

    ``prompts`` are left-padded, each ending with the answer cue, and have one answer position. ``cache`` holds keys and
    values of their prefix, which ``allowed`` then covers too.
    """
    answers: list[list[int]] = [[] for _ in prompts.embeddings]
    running, batch, cache = [True] * len(answers), prompts, DynamicCache() if cache is None else cache
    texts = foundation.tokenizer
    for step in range(max_new_tokens):
        tokens: Int[Tensor, " batch"] = run(llm, foundation.windows, batch, cache)[:, -1].argmax(-1)
        for row, token in enumerate(tokens.tolist()):
            running[row] = running[row] and token not in texts.ends
            if running[row]:
                answers[row].append(token)
                running[row] = texts.has_template or not is_finished(texts.decode(answers[row]))
        if not any(running) or step + 1 == max_new_tokens:
            break
        allowed = F.pad(batch.allowed[:, -1:], (0, 1), value=True)
        embeddings = foundation.embed(tokens.tolist()).unsqueeze(1)
        batch = PromptBatch(embeddings, allowed, batch.positions[:, -1:] + 1, 1, cached=batch.keys)
    return list(map(Decoded, answers, running))


def answer_text(ids: list[int], tokenizer: TextTokenizer) -> str:
    """Return the answer that ``ids`` spell, without outer blanks; may be empty.

    Without a chat template it goes up to the first of :data:`STOPS`, or to a word that repeats the one before.
    """
    text = tokenizer.decode(ids).strip()
    if tokenizer.has_template:
        return text
    for stop in STOPS:
        text = text.partition(stop)[0]
    words = text.split()
    return " ".join(words[: _first_repeat(words)])


def is_finished(text: str) -> bool:
    """Return whether decoded text holds a whole answer and the beginning of something else."""
    words = text.split()[:-1]  # the last may still grow, so it repeats nothing yet
    return any(stop in text.lstrip() for stop in STOPS) or _first_repeat(words) < len(words)


def _first_repeat(words: list[str]) -> int:
    """Return the place of the first word that repeats the one before it in any case; the length without one."""
    return next((n for n in range(1, len(words)) if words[n].lower() == words[n - 1].lower()), len(words))
