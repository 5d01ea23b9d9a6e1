"""The attention mask of each layer of F: the prompt's own mask, narrowed where a layer attends to a window only.

A model that is given a mask of shape ``[batch, 1, query, key]`` uses it unchanged in every layer. Layers with a sliding
window would then attend past their window, so the window is part of the mask here. It counts position numbers: absent
tokens take none, and every answer counts on from the prefix. Models that mix full and sliding layers take a mask by
layer type. Models that weigh distances (ALiBi) count them off the mask, so they cannot be given one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedConfig

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
