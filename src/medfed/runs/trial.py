"""A trial of a few layers of the LLM, before it is loaded: the time of a step, and the activations that it keeps.

The LLM is built with one and with two layers of each kind, full and sliding attention, with random weights and with
experts. Each runs a step in turn. Their difference is the cost of the layers on this device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, PreTrainedConfig

from medfed.injection.experts import RoutedLoraModel, add_experts
from medfed.llm.forward import run, windows_of
from medfed.llm.prompt import PromptBatch
from medfed.study.foundation import HuggingFaceSettings
from medfed.study.injection import InjectionSettings

_TRIAL_FLOPS = 1e11
"""A trial step of one layer takes about this much: seconds on one core."""

_REPEATS = 5


@dataclass(frozen=True)
class Shape:
    """A batch of prompts: examples, positions of each, and how many of these are answer positions."""

    batch: int
    length: int
    answer_positions: int


@dataclass(frozen=True)
class Trial:
    """Time and memory of the whole LLM for one batch of a :class:`Shape`, scaled up from few of its layers.

    Attributes:
        step_seconds: forward, backward.
        forward_seconds: forward alone.
        token_seconds: forward of one more position per example.
        kept_bytes: activations that a step keeps for its backward pass.
    """

    step_seconds: float
    forward_seconds: float
    token_seconds: float
    kept_bytes: int


def trial(
    config: PreTrainedConfig,
    shape: Shape,
    loading: HuggingFaceSettings,
    settings: InjectionSettings,
    device: str,
    *,
    mixed: bool = False,
) -> Trial:
    """Run steps of the LLM with one and two layers of each kind in turn; weights are random, and not quantised.

    Args:
        config: of the LLM's text part.
        shape: of a batch.
        loading: dtype of the weights.
        settings: adapters.
        device: of the trial.
        mixed: a batch holds examples of several tasks, each with an α of its own where the LLM's layers allow it.
    """
    dtype = getattr(torch, loading.dtype)
    short, long = (_FewLayers(_cut(config, repeats), dtype, settings, device, mixed=mixed) for repeats in (1, 2))
    more = int(config.num_hidden_layers) / len(_kinds(config)) - 1
    flops = 6 * (num_params(long.model) - num_params(short.model)) * shape.length
    batch = shape.batch if "cuda" in device else max(1, min(shape.batch, int(_TRIAL_FLOPS / flops)))
    tried, token = replace(shape, batch=batch), Shape(batch, 1, 1)

    def whole(one: float, two: float) -> float:
        return shape.batch / batch * (one + more * max(0.0, two - one))

    return Trial(
        step_seconds=whole(*_in_turn(lambda: short.step(tried), lambda: long.step(tried))),
        forward_seconds=whole(*_in_turn(lambda: short.forward(tried), lambda: long.forward(tried))),
        token_seconds=whole(*_in_turn(lambda: short.forward(token), lambda: long.forward(token))),
        kept_bytes=round(whole(float(short.kept_bytes(tried)), float(long.kept_bytes(tried)))),
    )


def num_params(model: nn.Module) -> int:
    """Return how many parameters a model has; tied ones count once."""
    return sum(value.numel() for value in model.parameters())


def _kinds(config: PreTrainedConfig) -> list[str | None]:
    """Return the types of the LLM's layers, each once."""
    return list(dict.fromkeys(getattr(config, "layer_types", None) or [None]))


def _cut(config: PreTrainedConfig, repeats: int) -> PreTrainedConfig:
    """Return the configuration with ``repeats`` layers of each type."""
    few: PreTrainedConfig = type(config).from_dict(config.to_dict())
    kinds = _kinds(config)
    few.num_hidden_layers = repeats * len(kinds)
    if kinds != [None]:
        few.layer_types = repeats * kinds
    return few


def _in_turn(first: Callable[[], None], second: Callable[[], None]) -> tuple[float, float]:
    """Return the shortest seconds of two functions, run in turn after one run of each to warm up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(1 + _REPEATS):
        for function, taken in zip((first, second), seconds, strict=True):
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    return min(seconds[0][1:]), min(seconds[1][1:])


class _FewLayers:
    """The LLM cut to few layers, with experts."""

    def __init__(
        self, config: PreTrainedConfig, dtype: torch.dtype, settings: InjectionSettings, device: str, *, mixed: bool
    ) -> None:
        with torch.device(device):
            self.model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
        self.model.requires_grad_(False)
        self._width = int(self.model.get_input_embeddings().weight.shape[1])
        self._num_experts = settings.num_experts
        self._windows, self._dtype, self._device = windows_of(self.model), dtype, device
        tuner = add_experts(self.model, settings).base_model if settings.num_experts else None
        self._routed = tuner if isinstance(tuner, RoutedLoraModel) else None
        self.model.eval()
        self._mixed = mixed and self._routed is not None and not self._routed.flattens_batch()

    def step(self, shape: Shape) -> None:
        """Run a forward and a backward pass."""
        self.model.train()
        self._loss(shape).backward()  # type: ignore[no-untyped-call]
        self.model.zero_grad()

    @torch.no_grad()
    def forward(self, shape: Shape) -> None:
        """Run a forward pass."""
        self.model.eval()
        self._loss(shape)

    def kept_bytes(self, shape: Shape) -> int:
        """Return how much a forward pass keeps for the backward pass, weights aside."""
        weights = {value.untyped_storage().data_ptr() for value in self.model.parameters()}
        kept: dict[int, int] = {}

        def keep(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return value

        self.model.train()
        with saved_tensors_hooks(keep, lambda value: value):
            self._loss(shape)
        return sum(kept.values())

    def _loss(self, shape: Shape) -> Float[Tensor, ""]:
        size, length, learning = shape.batch, shape.length, torch.is_grad_enabled()
        embeddings = torch.randn(size, length, self._width, dtype=self._dtype, device=self._device)
        causal = torch.ones(length, length, dtype=torch.bool, device=self._device).tril().expand(size, -1, -1)
        positions = torch.arange(length, device=self._device).expand(size, -1)
        batch = PromptBatch(embeddings.requires_grad_(learning), causal, positions, shape.answer_positions)
        rows = size if self._mixed else 1
        alpha = torch.ones(rows, self._num_experts, device=self._device, requires_grad=learning)
        with nullcontext() if self._routed is None else self._routed.routing.using(alpha):
            return run(self.model, self._windows, batch).float().log_softmax(-1)[..., 0].mean()
