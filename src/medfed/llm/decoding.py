"""Greedy decoding behind embedded prompts: how the injected LLM answers an open question.

Prompts of different length are padded on the left; padding and absent modalities are seen by nobody and take no
position. Keys and values are cached whole; windows are in the mask. An answer ends at the end-of-text token, at
a line break behind its first word, where a next question begins, or after ``max_new_tokens``; it is the text before
that. The most likely token is taken at every step (the lower id on a tie), so nothing is drawn and an answer does not
depend on what else stands in the batch, rounding aside.

Deviation: an answer also ends before a word that repeats the one just said. Closed answers are learned without an end,
so an LLM that never saw how an answer ends says "Yes Yes Yes …"; the rule is the same for every model and question.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from medfed.llm.foundation import Foundation
from medfed.llm.prompt import QUESTION, Sequences, TextTokenizer

STOPS = ("\n", QUESTION.partition("{")[0].strip())
"""Text that ends an answer: what follows is no longer one."""


def decode_greedily(
    llm: nn.Module, foundation: Foundation, prompts: Sequences, max_new_tokens: int, cache: object = None
) -> list[list[int]]:
    """Return the token ids of every answer, without the token that ended it; nothing is trained here.

    Args:
        llm: the LLM with its adapters; takes and returns ``past_key_values``.
        foundation: its tokenizer and embedding table.
        prompts: left-padded, each ending with the answer cue.
        max_new_tokens: at least 1.
        cache: keys and values of what comes before ``prompts``; ``allowed`` then names those keys too.
    """
    answers: list[list[int]] = [[] for _ in prompts.embeddings]
    running = [True] * len(answers)
    embeddings, allowed, positions = prompts.embeddings, prompts.allowed, prompts.positions
    keys = prompts.keys
    cache = DynamicCache() if cache is None else cache
    for step in range(max_new_tokens):
        output = llm(
            inputs_embeds=embeddings,
            attention_mask=foundation.mask(allowed, positions, keys),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens: Int[Tensor, " batch"] = output.logits[:, -1].argmax(-1)
        for row, token in enumerate(tokens.tolist()):
            running[row] = running[row] and _goes_on(answers[row], token, foundation.tokenizer)
        if not any(running) or step + 1 == max_new_tokens:
            break
        embeddings = foundation.embed(tokens.tolist()).unsqueeze(1)
        allowed = F.pad(allowed[:, -1:], (0, 1), value=True)
        positions = positions[:, -1:] + 1
        keys = torch.cat([keys, positions], 1)
    return answers


def answer_text(ids: list[int], tokenizer: TextTokenizer) -> str:
    """Return the answer that ``ids`` spell, up to the first of :data:`STOPS`, without outer blanks; may be empty."""
    text = tokenizer.decode(ids).strip()
    for stop in STOPS:
        text = text.partition(stop)[0]
    said = text.split()
    return " ".join(said[: _first_repeat(said)])


def is_finished(text: str) -> bool:
    """Whether what was decoded so far holds a whole answer and the beginning of something else.

    The last word may still grow, so it repeats nothing yet.
    """
    said = text.split()[:-1]
    return any(stop in text.lstrip() for stop in STOPS) or _first_repeat(said) < len(said)


def _first_repeat(said: list[str]) -> int:
    """Place of the first word that repeats the one before it, letter case aside; the length if none does."""
    return next((n for n in range(1, len(said)) if said[n].lower() == said[n - 1].lower()), len(said))


def _goes_on(answer: list[int], token: int, tokenizer: TextTokenizer) -> bool:
    """Append ``token`` and return whether the answer may have another."""
    if token == tokenizer.eos:
        return False
    answer.append(token)
    return not is_finished(tokenizer.decode(answer))
