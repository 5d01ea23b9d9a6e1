"""The frozen texts of an injected LLM, made once: prompts as token ids, and embeddings of prompts and descriptions.

Tokenizer and embedding table are the foundation's and never trained. Embeddings belong to the table as it is in memory:
after the table moves or changes, they are made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from medfed.injection.router import Description
from medfed.llm.foundation import Foundation
from medfed.llm.prompt import Prompt, build_prompt
from medfed.study.injection import Order
from medfed.tasks.base import Task

_NUM_PROMPTS, _NUM_EMBEDDED = 2048, 256
"""Texts kept; the least recently used goes first."""


class Texts:
    """Texts of tasks as the LLM reads them.

    Args:
        foundation: its tokenizer and embedding table.
        order: of the prompt's parts.
    """

    def __init__(self, foundation: Foundation, order: Order) -> None:
        self._foundation, self._order = foundation, order
        self._prompts: dict[tuple[str, tuple[str, ...]], Prompt] = {}
        self._embedded = lru_cache(_NUM_EMBEDDED)(self._embed)
        self._descriptions = lru_cache(_NUM_EMBEDDED)(self._describe)

    def prompt(self, task: Task) -> Prompt:
        """Return the task's texts as token ids.

        Raises:
            StudyError: two answers are the same text, or an answer is empty.
        """
        key = (task.question, task.answers)
        prompt = self._prompts.pop(key, None) or build_prompt(task, self._foundation.tokenizer, self._order)
        self._prompts[key] = prompt
        if len(self._prompts) > _NUM_PROMPTS:
            del self._prompts[next(iter(self._prompts))]
        return prompt

    def embedded(self, ids: tuple[int, ...]) -> Float[Tensor, "position width"]:
        """Return the embeddings of token ids; do not write into them."""
        return self._embedded(ids, self._table())

    def described(self, texts: Sequence[str]) -> Description:
        """Return embedded descriptions; do not write into them."""
        return self._descriptions(tuple(texts), self._table())

    def _table(self) -> tuple[torch.device, int, int]:
        table = self._foundation.table
        return table.device, table.data_ptr(), table._version

    def _embed(self, ids: tuple[int, ...], _: object) -> Tensor:
        with torch.inference_mode(mode=False), torch.no_grad():  # scoring may make what training will read
            return self._foundation.embed(ids)

    def _describe(self, texts: tuple[str, ...], _: object) -> Description:
        with torch.inference_mode(mode=False), torch.no_grad():
            embedded = [self._foundation.embed(self._foundation.tokenizer.encode(text)) for text in texts]
            padded = pad_sequence(embedded, batch_first=True)
            lengths = torch.tensor([len(part) for part in embedded], device=padded.device)
            return Description(padded, torch.arange(padded.shape[1], device=padded.device) < lengths.unsqueeze(1))
