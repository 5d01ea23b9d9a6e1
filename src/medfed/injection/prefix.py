"""Keys and values of a prompt's shared beginning, computed once (order ``task_first``: the question is the same for all
examples of a task).

They depend on the LLM's weights, its experts and α, so they live no longer than a block in which none of these changes,
and serve only where no gradient is asked for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from medfed.injection.foundation import Foundation
from medfed.injection.prompt import Sequences

Layers = list[tuple[Float[Tensor, "1 head position size"], Float[Tensor, "1 head position size"]]]
"""Keys and values of every layer."""


class Continued(NamedTuple):
    """Examples whose beginning the LLM has read: what follows it, and the keys and values of all that came before."""

    rest: Sequences
    cache: DynamicCache | None


class Prefixes:
    """Beginnings read so far, by their token ids; make one per block of unchanged weights and α."""

    def __init__(self) -> None:
        self._read: dict[tuple[int, ...], Layers] = {}

    def pays(self, ids: tuple[int, ...], size: int, fixed: float) -> bool:
        """Whether reading ``ids`` once for ``size`` examples saves more positions than a forward more costs."""
        return ids in self._read or (size - 1) * len(ids) > fixed

    def continued(self, llm: nn.Module, foundation: Foundation, ids: tuple[int, ...], batch: Sequences) -> Continued:
        """Return what follows the beginning ``ids``, which all of ``batch`` share, behind its keys and values."""
        if ids not in self._read:
            self._read[ids] = _read(llm, foundation, batch, len(ids))
        size, length = len(batch.embeddings), len(ids)
        cache = DynamicCache([tuple(part.expand(size, -1, -1, -1) for part in layer) for layer in self._read[ids]])
        rest = replace(
            batch,
            embeddings=batch.embeddings[:, length:],
            allowed=batch.allowed[:, length:],
            positions=batch.positions[:, length:],
            read=batch.positions[:, :length],
        )
        return Continued(rest, cache)


def _read(llm: nn.Module, foundation: Foundation, batch: Sequences, length: int) -> Layers:
    cache, positions = DynamicCache(), batch.positions[:1, :length]
    llm(
        inputs_embeds=batch.embeddings[:1, :length],
        attention_mask=foundation.mask(batch.allowed[:1, :length, :length], positions, positions),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return [(layer.keys, layer.values) for layer in cache.layers]
