"""Greedy decoding behind embedded prompts: how the injected LLM answers an open question.

Prompts of different length are padded on the left. No position attends to padding or absent modalities, and these take
no position number. The key/value cache holds all keys; windows are in the mask. An answer ends at the end-of-text
token, at a line break behind its first word, where a next question begins, or after ``max_new_tokens``. The most likely
token is taken at every step (the lower id on a tie), so nothing is random. Rounding aside, an answer does not depend on
the rest of the batch.

Deviation: an answer also ends before a word that repeats the previous one, for every model and question. Closed answers
are trained without an end, so an LLM that never saw an end decodes "Yes Yes Yes …".
"""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from medfed.llm.forward import run
from medfed.llm.foundation import Foundation
from medfed.llm.prompt import QUESTION, PromptBatch, TextTokenizer

STOPS = ("\n", QUESTION.partition("{")[0].strip())
"""Text that ends an answer."""


def decode_greedily(
    llm: nn.Module, foundation: Foundation, prompts: PromptBatch, max_new_tokens: int, cache: object = None
) -> list[list[int]]:
    """Return the token ids of every answer, without the token that ended it; nothing is trained here.

    ``prompts`` are left-padded, each ending with the answer cue, and have one answer position. ``cache`` holds keys and
    values of their prefix, which ``allowed`` then covers too.
    """
    answers: list[list[int]] = [[] for _ in prompts.embeddings]
    running, batch, cache = [True] * len(answers), prompts, DynamicCache() if cache is None else cache
    for step in range(max_new_tokens):
        tokens: Int[Tensor, " batch"] = run(llm, foundation.windows, batch, cache)[:, -1].argmax(-1)
        for row, token in enumerate(tokens.tolist()):
            running[row] = running[row] and token not in foundation.tokenizer.ends
            if running[row]:
                answers[row].append(token)
                running[row] = not is_finished(foundation.tokenizer.decode(answers[row]))
        if not any(running) or step + 1 == max_new_tokens:
            break
        allowed = F.pad(batch.allowed[:, -1:], (0, 1), value=True)
        embeddings = foundation.embed(tokens.tolist()).unsqueeze(1)
        batch = PromptBatch(embeddings, allowed, batch.positions[:, -1:] + 1, 1, cached=batch.keys)
    return answers


def answer_text(ids: list[int], tokenizer: TextTokenizer) -> str:
    """Return the answer that ``ids`` spell, up to the first of :data:`STOPS`, without outer blanks; may be empty."""
    text = tokenizer.decode(ids).strip()
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
