"""What each layer of F may look at: the prompt's own mask, narrowed where a layer looks back only so far.

A model that is given a mask of shape ``[batch, 1, query, key]`` takes it as it is, in every layer. Layers with a
sliding window would then see past their window without a word, so the window is put into the mask here, counted in
positions (absent tokens take none, and every answer counts on from the prefix). Models that mix full and sliding layers
take a mask by layer type. Models that weigh distances (ALiBi) count them off the mask, so they cannot be given one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig

from medfed.core.errors import StudyError

FULL, SLIDING = "full_attention", "sliding_attention"
AttentionMask = Float[Tensor, "batch 1 query key"] | dict[str, Float[Tensor, "batch 1 query key"]]
"""One mask for all layers, or one by layer type."""


@dataclass(frozen=True)
class Windows:
    """How many positions back each type of layer looks, its own included; None for all of them."""

    by_type: Mapping[str, int | None]

    def mask(
        self,
        allowed: Bool[Tensor, "batch query key"],
        queries: Int[Tensor, "batch query"],
        keys: Int[Tensor, "batch key"],
        dtype: torch.dtype,
    ) -> AttentionMask:
        """Return 0 where a query may look and the lowest number elsewhere.

        Args:
            allowed: what the prompt allows.
            queries: position numbers of the queries.
            keys: position numbers of the keys.
            dtype: of the LLM's activations.
        """
        narrow = {window for window in self.by_type.values() if window is not None and window < allowed.shape[-1]}
        if not narrow:
            return additive_mask(allowed, dtype)
        distance = queries.unsqueeze(2) - keys.unsqueeze(1)
        masks = {
            kind: additive_mask(allowed if window is None else allowed & (distance < window), dtype)
            for kind, window in self.by_type.items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))


def windows_of(model: nn.Module) -> Windows:
    """Read the windows of a transformers model's layers off its configuration.

    Raises:
        StudyError: a layer is neither full nor sliding attention, or the model takes no position numbers.
    """
    config: PreTrainedConfig = model.config.get_text_config()  # type: ignore[operator, union-attr]
    if getattr(config, "alibi", False) or "position_ids" not in signature(model.forward).parameters:
        raise StudyError(
            "it takes no position numbers (ALiBi), so several answers cannot stand behind one prompt",
            where=type(model).__name__,
            hint="use an LLM with rotary or learned positions",
        )
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or [FULL if window is None else SLIDING]
    kinds = [*kinds, *({*getattr(config, "attention_layers", ())} - {"global"})]  # GPT-Neo's layers mask by themselves
    if other := sorted(set(kinds) - {FULL, SLIDING}):
        raise StudyError(
            f"layers of the type {other[0]!r} cannot be shown several answers behind one prompt",
            where=type(model).__name__,
            hint="use an LLM with full or sliding attention",
        )
    return Windows({kind: window if kind == SLIDING else None for kind in sorted(set(kinds))})


def additive_mask(allowed: Bool[Tensor, "batch query key"], dtype: torch.dtype) -> Float[Tensor, "batch 1 query key"]:
    """Return 0 where a query may look and the lowest number elsewhere."""
    mask = torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    return mask.unsqueeze(1)
