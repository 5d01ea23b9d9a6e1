"""A tiny random LLM of each family, written as the folder that a hub would hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

from injection_toys import TEXTS
from medfed.core.torch_rng import torch_seeded
from medfed.llm.tiny.pretrain import SPECIAL, train_tokenizer

WINDOW = 6
"""Shorter than every prompt."""
VOCABULARY = 320
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**MIXED, "use_sliding_window": True}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {**MIXED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", MIXED),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "phi3": ("phi3", {"sliding_window": WINDOW}),
    "mixtral": ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "qwen2_moe",
        {
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
    ),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2, "dropout": 0.0}),
}
"""Name → model type and what is set beside :data:`COMMON`: windows, capping, ties, biases, experts of its own."""
FLATTENING = frozenset({"qwen2_moe", "opt"})
"""Families with layers that see all tokens of a batch in one row, so that it can have but one α."""


def write_model(folder: Path, family: str, **changes: Any) -> Path:
    """Write config, random weights and tokenizer of a family to ``folder``; the same at every call."""
    kind, own = FAMILIES[family]
    config = AutoConfig.for_model(kind, **{**COMMON, **own, **changes})
    with torch_seeded("tiny", family):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return write_tokenizer(folder)


def write_wrapped(folder: Path) -> Path:
    """Write a Gemma 3 with its picture tower."""
    text = {**COMMON, **MIXED, "model_type": "gemma3_text"}
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    with torch_seeded("tiny", "wrapped"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return write_tokenizer(folder)


def write_tokenizer(folder: Path) -> Path:
    """Write a byte-pair tokenizer of a few words to ``folder``."""
    pad, start, end = SPECIAL
    made = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(TEXTS, VOCABULARY), pad_token=pad, bos_token=start, eos_token=end
    )
    made.save_pretrained(folder)
    return folder
