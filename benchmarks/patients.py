"""A server with made-up patients: a random Llama, the four trained tasks of FedKIM, and encoders that cost nothing.

An image is 16 tokens (a 4 × 4 grid), an ECG 10 (one a second), each of the four ICU series 24 (one an hour). With the
tasks' own questions the prompts are of 20 to 120 tokens, mixed in every batch, as they come.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from benchmarks.llama import llama
from medfed.core.catalog import TASKS
from medfed.core.torch_rng import torch_seeded
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
from medfed.tasks.base import Task, TaskSet

TRAINED = ("cd", "lod", "ead", "mp")
NUM_TOKENS = {"image": 16, "ecg": 10, "vitals": 24, "labs": 24, "input": 24, "output": 24}
CHANNELS, DIM = 8, 64
BALANCED = {"balance_tasks": True, "balance_classes": True}
"""The order of :func:`medfed.injection.batching.epoch_order`'s defaults, which the plain form takes."""
ANY = SignalModality()
"""The encoder asks nothing of a modality."""


class TokensSpec(EncoderSpec):
    """One linear map per token."""

    name: ClassVar[str] = "tokens"
    dim: int = DIM
    num_tokens: int

    def build(self, modality: Modality) -> Encoder:
        """Return the encoder."""
        return Tokens(self)


class Tokens(Encoder):
    """``[batch, CHANNELS]`` → ``[batch, tokens, dim]``."""

    def __init__(self, spec: TokensSpec) -> None:
        super().__init__()
        self.dim = spec.dim
        self.maps = nn.Linear(CHANNELS, spec.num_tokens * spec.dim)

    def forward(self, samples: Tensor) -> Tensor:
        """Encode."""
        tokens: Tensor = self.maps(samples).unflatten(1, (-1, self.dim))
        return tokens


class Server(NamedTuple):
    """The injector, with the model whose encoders it reads."""

    injector: Injector
    model: MultimodalModel
    tasks: tuple[Task, ...]

    @property
    def llm(self) -> nn.Module:
        """The LLM with its experts."""
        return self.injector.injected.llm


@cache
def tokenizer() -> HubTokenizer:
    """Return a byte-pair tokenizer that knows the tasks' words."""
    texts_of_tasks = [(task.question, task.task_description, task.modality_description) for task in TASKS.values()]
    texts = [f" Question: {words} Answer: Yes Answer: No" for task in texts_of_tasks for words in task]
    made = train_tokenizer(texts, 1500)
    pad, start, end = SPECIAL
    return HubTokenizer(PreTrainedTokenizerFast(tokenizer_object=made, pad_token=pad, bos_token=start, eos_token=end))


def server(width: int, num_layers: int, vocabulary: int, **settings: object) -> Server:
    """Return an injector whose LLM learns from labels alone, without chance: what it computes can be done by hand."""
    foundation = Foundation("random", llama(width, num_layers, vocabulary=vocabulary), tokenizer(), {})
    tasks = tuple(TASKS[name] for name in TRAINED)
    specs = {name: TokensSpec(num_tokens=number) for name, number in NUM_TOKENS.items()}
    with torch_seeded("benchmark", "model"):
        model = MultimodalModel(specs, dict.fromkeys(NUM_TOKENS, ANY), tasks)
    chosen = {"recipe": "paper", "dropout": 0.0, "encoder_lr": 0.0, **BALANCED} | settings
    injector = Injector(foundation, model, tasks, InjectionSettings.model_validate(chosen), 0)
    with torch.no_grad():
        for name, value in injector.injected.named_parameters():
            if "lora_B" in name:  # injection starts as the identity; in the middle of training it is none
                nn.init.normal_(value, std=0.02, generator=torch.Generator().manual_seed(0))
    return Server(injector, model, tasks)


def patients(task: Task, number: int, seed: int = 0) -> TaskSet:
    """Return made-up examples; the class shows in the sample."""
    rng = np.random.default_rng(seed)
    targets = np.arange(number) % len(task.answers)
    shift = (targets - 0.5).astype(np.float32)[:, None]
    samples = {name: rng.normal(size=(number, CHANNELS)).astype(np.float32) + shift for name in task.modalities}
    return TaskSet.from_arrays(task, samples, targets, f"made-up-{seed}")
