"""Keys and values of a prompt's shared beginning, computed once (order ``task_first``: the question is the same for all
examples of a task).

They depend on the LLM's weights, its experts and α, so they live no longer than a block in which none of these changes,
and serve only where no gradient is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

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

    def continued(
        self, run: Callable[[Sequences, DynamicCache], Tensor], ids: tuple[int, ...], batch: Sequences
    ) -> Continued:
        """Return what follows the beginning ``ids``, which all of ``batch`` share, behind its keys and values.

        ``run`` lets the LLM read a batch, filling the cache.
        """
        if ids not in self._read:
            self._read[ids] = _read(run, batch, len(ids))
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


def _read(run: Callable[[Sequences, DynamicCache], Tensor], batch: Sequences, length: int) -> Layers:
    cache = DynamicCache()  # of the whole beginning, also in layers that look back only so far: the mask knows
    one = Sequences(
        batch.embeddings[:1, :length], batch.allowed[:1, :length, :length], batch.positions[:1, :length], num_asked=1
    )
    run(one, cache)
    return [(layer.keys, layer.values) for layer in cache.layers]
