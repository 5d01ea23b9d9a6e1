"""A forward of the LLM over embedded prompts: its answer positions alone, behind cached keys and values where it pays.

:func:`answer_logits` saves the head's work. In a batch of several tasks, an answer of one token needs one position per
row. The LLM keeps the trailing positions of the longest answers (``logits_to_keep``), and a hook on its head takes each
row's own from these. The LLM's own forward thus stays in charge of its logits.

:class:`PrefixCache` saves the LLM's work. With the order ``task_first``, all examples of a task begin with the same
question. Its keys and values depend on the LLM's weights, its experts and α. They live no longer than a block in which
none of these changes, and serve only without gradients.

:class:`Windows` narrows the prompt's mask. A model uses a mask of shape ``[batch, 1, query, key]`` in every layer, so
layers with a sliding window would attend past it. A window counts position numbers: absent tokens take none, and every
answer counts on from the prefix. Models that mix full and sliding layers take a mask by layer type. Models that weigh
distances (ALiBi) count them off the mask, so they cannot be given one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from operator import mul
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig

from medfed.core.errors import StudyError
from medfed.llm.prompt import PromptBatch

_FULL, _SLIDING = "full_attention", "sliding_attention"

AttentionMask = Float[Tensor, "batch 1 query key"] | dict[str, Float[Tensor, "batch 1 query key"]]
"""One mask for all layers, or one by layer type."""


@dataclass(frozen=True)
class Windows:
    """How many positions back each type of layer attends, its own included; None for all of them."""

    by_type: Mapping[str, int | None]

    def mask(self, batch: PromptBatch) -> AttentionMask:
        """Return 0 where a query may attend and the lowest number elsewhere, in the dtype of the embeddings.

        The LLM must cache all keys, also in layers with a window. A ``DynamicCache`` made without a configuration does.
        """
        allowed, dtype = batch.allowed, batch.embeddings.dtype
        if not any(window is not None and window < allowed.shape[-1] for window in self.by_type.values()):
            return _additive(allowed, dtype)
        distance = batch.positions.unsqueeze(2) - batch.keys.unsqueeze(1)
        seen = {kind: allowed if w is None else allowed & (distance < w) for kind, w in self.by_type.items()}
        masks = {kind: _additive(pairs, dtype) for kind, pairs in seen.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))


def windows_of(model: nn.Module) -> Windows:
    """Read the windows of a transformers model's layers off its configuration.

    Raises StudyError if a layer is neither full nor sliding attention, or the model takes no position numbers.
    """
    config: PreTrainedConfig = model.config.get_text_config()  # type: ignore[operator, union-attr]
    where = type(model).__name__
    if getattr(config, "alibi", False) or "position_ids" not in signature(model.forward).parameters:
        what = "it takes no position numbers (ALiBi), so several answers cannot follow one prompt"
        raise StudyError(what, where=where, hint="use an LLM with rotary or learned positions")
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or [_FULL if window is None else _SLIDING]
    kinds = [*kinds, *({*getattr(config, "attention_layers", ())} - {"global"})]  # GPT-Neo's layers mask by themselves
    if other := sorted(set(kinds) - {_FULL, _SLIDING}):
        what = f"layers of the type {other[0]!r} do not let several answers follow one prompt"
        raise StudyError(what, where=where, hint="use an LLM with full or sliding attention")
    return Windows({kind: window if kind == _SLIDING else None for kind in sorted(set(kinds))})


def _additive(allowed: Bool[Tensor, "batch query key"], dtype: torch.dtype) -> Float[Tensor, "batch 1 query key"]:
    mask = torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    return mask.unsqueeze(1)


def run(llm: nn.Module, windows: Windows, batch: PromptBatch, cache: object = None) -> Float[Tensor, "batch _ vocab"]:
    """Return the logits of the last ``num_answer_positions`` positions; a ``cache`` is read and filled."""
    inputs = {"inputs_embeds": batch.embeddings, "attention_mask": windows.mask(batch), "position_ids": batch.positions}
    kept = batch.num_answer_positions
    return cast(Tensor, llm(**inputs, past_key_values=cache, use_cache=cache is not None, logits_to_keep=kept).logits)


def answer_logits(
    llm: nn.Module,
    sizes: Sequence[int],
    counts: Sequence[int],
    forward: Callable[[], Float[Tensor, "batch kept vocab"]],
) -> list[Float[Tensor, "_ _ vocab"]]:
    """Return the logits of the last ``counts[i]`` positions of the ``sizes[i]`` examples of every group, in order.

    ``forward`` runs ``llm`` on the batch, keeping as many positions as the largest of ``counts``.
    """
    most = max(counts)
    if min(counts) == most:
        return list(torch.split(forward(), list(sizes)))
    by_row = [count for size, count in zip(sizes, counts, strict=True) for _ in range(size)]
    wanted = torch.arange(most) >= most - torch.tensor(by_row).unsqueeze(1)

    def pick(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0][wanted.to(inputs[0].device)].unsqueeze(0),)

    handle = llm.get_output_embeddings().register_forward_pre_hook(pick)  # type: ignore[operator]
    try:
        logits = forward()[0]
    finally:
        handle.remove()
    parts = torch.split(logits, list(map(mul, sizes, counts)))
    return [part.view(size, -1, part.shape[-1]) for part, size in zip(parts, sizes, strict=True)]


class PrefixCache:
    """Keys and values of prefixes by their token ids; make one per block of unchanged weights and α.

    ``fixed_cost`` is that of a forward, in positions.
    """

    def __init__(self, llm: nn.Module, windows: Windows, fixed_cost: float) -> None:
        self._llm, self._windows, self._fixed_cost = llm, windows, fixed_cost
        self._layers: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}

    def pays(self, ids: tuple[int, ...], size: int) -> bool:
        """Return whether one forward of ``ids`` for ``size`` examples saves more positions than it costs."""
        return ids in self._layers or (size - 1) * len(ids) > self._fixed_cost

    def continued(self, ids: tuple[int, ...], batch: PromptBatch) -> tuple[PromptBatch, DynamicCache]:
        """Return the part of ``batch`` behind ``ids``, with which all examples begin, and their keys and values."""
        if ids not in self._layers:
            self._layers[ids] = self._read(batch, len(ids))
        size, length = len(batch.embeddings), len(ids)
        cache = DynamicCache([tuple(part.expand(size, -1, -1, -1) for part in layer) for layer in self._layers[ids]])
        left = {name: getattr(batch, name)[:, length:] for name in ("embeddings", "allowed", "positions")}
        return replace(batch, **left, cached=batch.positions[:, :length]), cache

    def _read(self, batch: PromptBatch, length: int) -> list[tuple[Tensor, Tensor]]:
        """Return ``[1, head, position, size]`` keys and values of every layer, all positions also where a window is."""
        allowed, cache = batch.allowed[:1, :length, :length], DynamicCache()
        prefix = PromptBatch(batch.embeddings[:1, :length], allowed, batch.positions[:1, :length], 1)
        run(self._llm, self._windows, prefix, cache)
        return [(layer.keys, layer.values) for layer in cache.layers]
