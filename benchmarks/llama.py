"""A random Llama of any size, and second modules over its weights for adapters to wrap."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

M = TypeVar("M", bound=nn.Module)


def llama(
    width: int,
    num_layers: int,
    *,
    vocabulary: int = 64,
    intermediate: int | None = None,
    key_value_heads: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> LlamaForCausalLM:
    """Return a frozen Llama with random weights; its MLP is 8/3 as wide as it, unless ``intermediate`` is given."""
    heads = max(1, width // 64)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=intermediate or -(-width * 8 // 3 // 64) * 64,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads or heads,
        use_cache=False,
        dtype=dtype,
    )
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.requires_grad_(False).eval()


def sharing(model: M) -> M:
    """Return a second module over the same weights."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
