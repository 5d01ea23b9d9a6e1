"""Small LLMs: an injected one in memory on a random Llama, and a random one of each family in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from medfed.core.torch_rng import torch_seeded
from medfed.datasets.base import Card
from medfed.datasets.decoded import Decoded
from medfed.injection.inject import Injector
from medfed.llm.foundation import Foundation
from medfed.llm.huggingface import HubTokenizer
from medfed.llm.tiny.pretrain import SPECIAL, train_tokenizer
from medfed.modalities.base import Modality
from medfed.modalities.signal import SignalModality
from medfed.models.base import Encoder
from medfed.models.multimodal import MultimodalModel
from medfed.study.injection import InjectionSettings
from medfed.study.parts import EncoderSpec
from medfed.tasks.base import TaskSet
from medfed.tasks.classification import Classification

CARD = Card(title="toy", version="1", licence="none", access="none", citation="none")
CHANNELS = 6
SIGNAL = SignalModality()
"""Any modality: the toy encoder asks nothing of it."""
VOCABULARY = 320
TEXTS = ("Question: Is it round? Answer: Yes", "Question: Is it red? Answer: No", "shape colour image sound task") * 20

IMAGE = Classification(
    name="image-task",
    title="Image task",
    dataset="toy",
    target="label",
    modalities=("image",),
    question="Is it round?",
    task_description="The shape task looks at an image.",
    modality_description="Image only",
)
BOTH = IMAGE.model_copy(
    update={
        "name": "both-task",
        "modalities": ("image", "sound"),
        "question": "Does the long sound of this thing fit its colour?",
        "task_description": "Colours and sounds.",
        "modality_description": "Image and sound.",
    }
)
WORDY = BOTH.model_copy(update={"name": "wordy", "answers": ("not at all round", "round", "a red thing that hums")})
"""Answers of several tokens."""


class ToyEncoder(Encoder):
    """Two tokens per sample, one linear map each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.maps = nn.Linear(CHANNELS, 2 * dim)

    def forward(self, samples: Tensor) -> Tensor:
        tokens: Tensor = self.maps(samples).unflatten(1, (2, self.dim))
        return tokens


class ToySpec(EncoderSpec):
    """Settings of :class:`ToyEncoder`."""

    name = "toy"
    dim: int = 5

    def build(self, modality: Modality) -> Encoder:
        return ToyEncoder(self.dim)


@cache
def tokenizer() -> HubTokenizer:
    """A byte-pair tokenizer of a few words."""
    return HubTokenizer(fast_tokenizer())


def fast_tokenizer(*, adds_start: bool = True) -> PreTrainedTokenizerFast:
    """The same in transformers' form; like Llama's, it puts a start token before a text by itself."""
    pad, start, end = SPECIAL
    trained = train_tokenizer(TEXTS, VOCABULARY)
    if adds_start:
        special = [(start, trained.token_to_id(start))]
        trained.post_processor = TemplateProcessing(single=f"{start} $A", special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=trained, pad_token=pad, bos_token=start, eos_token=end)


def language_model(**changes: Any) -> LlamaForCausalLM:
    """A random Llama, the same at every call."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, initializer_range=0.1, **(sizes | changes))
    with torch_seeded("toy", "llm"):
        return LlamaForCausalLM(config)


def foundation(**changes: Any) -> Foundation:
    """The random Llama, frozen."""
    return Foundation("toy", language_model(**changes), tokenizer(), {})


def federated_model() -> MultimodalModel:
    """Two encoders and the heads, the same at every call."""
    specs = {"image": ToySpec(), "sound": ToySpec(dim=7)}
    with torch_seeded("toy", "model"):
        return MultimodalModel(specs, {"image": SIGNAL, "sound": SIGNAL}, (IMAGE, BOTH))


def public(size: int = 24, *, absent: float = 0.0) -> dict[str, TaskSet]:
    """Public sets of both tasks: the mean of a sample tells its class."""
    return {task.name: _examples(task, size, absent, number) for number, task in enumerate((IMAGE, BOTH))}


def examples(task: Classification, size: int, *, absent: float = 0.0) -> TaskSet:
    """A set of one task."""
    return _examples(task, size, absent, 9)


def settings(**changes: Any) -> InjectionSettings:
    """Small and fast; half of the examples are taught by the heads, and the LLM's loss reaches the encoders."""
    small = {"num_experts": 3, "rank": 2, "num_epochs": 1, "batch_size": 8, "teacher_weight": 0.5, "encoder_lr": None}
    return InjectionSettings(**(small | changes))


def injector(seed: int = 0, **changes: Any) -> Injector:
    """A fresh injector over a fresh foundation and model."""
    return Injector(foundation(), federated_model(), (IMAGE, BOTH), settings(**changes), seed)


def _examples(task: Classification, size: int, absent: float, seed: int) -> TaskSet:
    rng = np.random.default_rng(seed)
    target = rng.integers(len(task.answers), size=size)
    shift = (2.0 * target - 1).astype(np.float32)[:, None]
    names = [f"{task.name}-{number}" for number in range(size)]
    index = pl.DataFrame({"example": names, "patient": names, "label": target.astype(np.int8)})
    samples = {name: rng.normal(size=(size, CHANNELS)).astype(np.float32) + shift for name in task.modalities}
    present: Mapping[str, np.ndarray] = {name: rng.random(size) >= absent for name in task.modalities}
    for name, values in samples.items():
        values[~present[name]] = 0.0
    return TaskSet(task, Decoded("toy", CARD, index, samples, present), np.arange(size))


def kept_tensors(run: Callable[[], Tensor]) -> list[Tensor]:
    """What automatic differentiation keeps of a forward pass, each storage once, alive while it is counted."""
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = run()
    assert out.requires_grad
    return list(kept.values())


WINDOW = 6
"""Shorter than every prompt."""
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
    "qwen2": ("qwen2", {"tie_word_embeddings": False}),
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
    fast_tokenizer().save_pretrained(folder)
    return folder
