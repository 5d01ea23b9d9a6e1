"""What an injection will take of memory, before it takes it, from the LLM's configuration alone.

No weight of the LLM is read: its parameters are counted on PyTorch's meta device. What a step keeps, and how long it
takes, comes from a trial (:mod:`medfed.injection.trial`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from medfed.errors import StudyError
from medfed.injection.huggingface import HuggingFaceSettings
from medfed.injection.projector import Projector
from medfed.injection.router import Router
from medfed.injection.settings import InjectionSettings
from medfed.injection.targets import projections

TRAINED_BYTES = 4 * 4
"""Per trained parameter, float32: the value, its gradient, and AdamW's two moments."""
BLOCK = 64
"""Weights that share a scale in 4-bit NF4; the table of its 16 values is float32 too."""


@dataclass(frozen=True)
class Shape:
    """A batch of prompts as the LLM sees it: ``asked`` trailing positions give logits."""

    batch: int
    length: int
    asked: int


def read_config(folder: Path) -> PreTrainedConfig:
    """Read the configuration of the LLM in ``folder``.

    Raises:
        StudyError: transformers does not know this kind by itself.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise StudyError(f"cannot read the LLM: {reason}", where=folder, hint="use a native causal LM") from error
    return config


def on_meta(config: PreTrainedConfig) -> nn.Module:
    """Return the LLM without its weights."""
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def num_params(model: nn.Module) -> int:
    """Return how many parameters a model has; tied ones count once."""
    return sum(value.numel() for value in model.parameters())


def weight_bytes(model: nn.Module, settings: HuggingFaceSettings) -> int:
    """Return what the frozen weights take in memory, with the scales and tables of 4-bit ones."""
    size = int(getattr(torch, settings.dtype).itemsize)
    if not settings.load_in_4bit:
        return num_params(model) * size
    head = model.get_output_embeddings()  # type: ignore[operator]
    packed = [part for part in model.modules() if isinstance(part, nn.Linear) and part is not head]
    weights = [part.weight.numel() for part in packed]
    biases = sum(part.bias.numel() for part in packed if part.bias is not None)
    rest = num_params(model) - sum(weights) - biases
    return rest * size + biases * 2 + sum((n + 1) // 2 + 4 * -(-n // BLOCK) + 4 * 16 for n in weights)


def trained_params(model: nn.Module, dims: Mapping[str, int], settings: InjectionSettings) -> dict[str, int]:
    """Return part → number of trained parameters of the injected LLM.

    Args:
        model: the LLM, its weights may be absent.
        dims: token width of everything that is shown, as :class:`medfed.injection.injected.InjectedModel` takes it.
        settings: adapters.
    """
    width = int(model.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
    linear = [model.get_submodule(name) for name in projections(model)] if settings.num_experts else []
    sides = sum(part.in_features + part.out_features for part in linear if isinstance(part, nn.Linear))
    with torch.device("meta"):
        parts: dict[str, list[nn.Module]] = {
            "projectors": [Projector(settings.projector, dim, width, 1.0) for dim in dims.values()],
            "router": [Router(width, settings.num_experts, settings.router)] if settings.num_experts > 1 else [],
        }
    counts = {name: sum(map(num_params, modules)) for name, modules in parts.items()}
    return {**counts, "experts": settings.num_experts * settings.rank * sides}


def cache_bytes(config: PreTrainedConfig, shape: Shape, settings: HuggingFaceSettings) -> int:
    """Return what keys and values of a batch take while an open question is answered."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = int(getattr(torch, settings.dtype).itemsize)
    return 2 * int(text.num_hidden_layers * heads * head_dim) * shape.batch * shape.length * size


def free_bytes(device: str) -> int:
    """Return the memory that is free on ``device``."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
