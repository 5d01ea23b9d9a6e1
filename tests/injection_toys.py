"""A small injected LLM in memory: a random Llama, linear encoders, and public sets whose class shows in the sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
    pad, start, end = SPECIAL
    return HubTokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=train_tokenizer(TEXTS, 320), pad_token=pad, bos_token=start, eos_token=end
        )
    )


def language_model(**changes: Any) -> LlamaForCausalLM:
    """A random Llama, the same at every call."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=320, num_key_value_heads=2, initializer_range=0.1, **(sizes | changes))
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
