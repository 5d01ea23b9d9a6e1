"""A trial of a few layers of the LLM, before it is loaded: how long a step takes, and what it keeps to go backward.

The LLM is built with one and with two layers of each kind (full and sliding attention have a mask each), random weights
and experts on them, and runs a step of each in turn: their difference is what layers cost and keep, on this device, as
the code does it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, PreTrainedConfig

from medfed.injection.experts import RoutedLoraModel, add_experts, flattens
from medfed.injection.forecast import Shape, num_params
from medfed.injection.huggingface import HuggingFaceSettings
from medfed.injection.masks import windows_of
from medfed.injection.settings import InjectionSettings

TRIAL_FLOPS = 1e11
"""A trial step of one layer takes about this much: seconds on one core."""
REPEATS = 5


@dataclass(frozen=True)
class Trial:
    """What the whole LLM takes for one batch of a :class:`Shape`, scaled up from few of its layers.

    Attributes:
        step_seconds: forward, backward.
        forward_seconds: forward alone.
        token_seconds: forward of one more position per example.
        kept_bytes: what a step keeps for its backward pass.
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
        config: of the LLM.
        shape: of a batch.
        loading: dtype of the weights.
        settings: adapters.
        device: where to run.
        mixed: a batch holds examples of several tasks, each with an α of its own where the LLM's layers allow it.
    """
    dtype = getattr(torch, loading.dtype)
    short, long = (_Stub(config, repeats, dtype, settings, device, mixed=mixed) for repeats in (1, 2))
    kinds = len(_kinds(config))
    more = int(config.get_text_config().num_hidden_layers) / kinds - 1
    flops = 6 * (num_params(long.model) - num_params(short.model)) * shape.length
    batch = shape.batch if "cuda" in device else max(1, min(shape.batch, int(TRIAL_FLOPS / flops)))
    share, tried = shape.batch / batch, Shape(batch, shape.length, shape.asked)

    def whole(one: float, two: float) -> float:
        return share * (one + more * max(0.0, two - one))

    step = _interleaved(lambda: short.step(tried), lambda: long.step(tried))
    look = _interleaved(lambda: short.look(tried), lambda: long.look(tried))
    alone = Shape(batch, 1, 1)
    token = _interleaved(lambda: short.look(alone), lambda: long.look(alone))
    kept = whole(float(short.kept_bytes(tried)), float(long.kept_bytes(tried)))
    return Trial(whole(*step), whole(*look), whole(*token), round(kept))


def _interleaved(first: Callable[[], None], second: Callable[[], None]) -> tuple[float, float]:
    """Return the shortest times of two runs, taken in turn after one of each to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(1 + REPEATS):
        for run, taken in zip((first, second), times, strict=True):
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    return min(times[0][1:]), min(times[1][1:])


class _Stub:
    """The LLM cut to few layers, with experts."""

    def __init__(
        self,
        config: PreTrainedConfig,
        repeats: int,
        dtype: torch.dtype,
        settings: InjectionSettings,
        device: str,
        *,
        mixed: bool,
    ) -> None:
        with torch.device(device):
            self.model: nn.Module = AutoModelForCausalLM.from_config(_cut(config, repeats), dtype=dtype)
        self.model.requires_grad_(False)
        self._windows, self._dtype, self._device = windows_of(self.model), dtype, device
        self._tuner: Any = None
        if settings.num_experts:
            own = (settings.num_experts, settings.rank, settings.alpha, settings.dropout, settings.router)
            self._tuner = add_experts(self.model, *own).base_model
        self._num_experts = settings.num_experts
        self._routed = isinstance(self._tuner, RoutedLoraModel)
        self.model.eval()
        self._mixed = mixed and self._routed and not flattens(self._tuner)

    def step(self, shape: Shape) -> None:
        """Run a forward and a backward pass."""
        self.model.train()
        self._loss(shape).backward()  # type: ignore[no-untyped-call]
        self.model.zero_grad()

    @torch.no_grad()
    def look(self, shape: Shape) -> None:
        """Run a forward pass."""
        self.model.eval()
        self._loss(shape)

    def kept_bytes(self, shape: Shape) -> int:
        """Return how much a forward pass keeps for the backward pass, beside the weights."""
        held = {value.untyped_storage().data_ptr() for value in self.model.parameters()}
        kept: dict[int, int] = {}

        def keep(value: Tensor) -> Tensor:
            place = value.untyped_storage()
            if place.data_ptr() not in held:
                kept[place.data_ptr()] = place.nbytes()
            return value

        self.model.train()
        with saved_tensors_hooks(keep, lambda value: value):
            self._loss(shape)
        return sum(kept.values())

    def _loss(self, shape: Shape) -> Float[Tensor, ""]:
        width = int(self.model.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
        shown = torch.randn(shape.batch, shape.length, width, dtype=self._dtype, device=self._device)
        places = torch.arange(shape.length, device=self._device).expand(shape.batch, -1)
        allowed = torch.ones(shape.length, shape.length, dtype=torch.bool, device=self._device).tril()
        rows, learning = shape.batch if self._mixed else 1, torch.is_grad_enabled()
        alpha = torch.ones(rows, self._num_experts, device=self._device, requires_grad=learning)
        with self._tuner.routing.using(alpha) if self._routed else nullcontext():
            logits: Tensor = self.model(
                inputs_embeds=shown.requires_grad_(torch.is_grad_enabled()),
                attention_mask=self._windows.mask(allowed.expand(shape.batch, -1, -1), places, places, self._dtype),
                position_ids=places,
                use_cache=False,
                logits_to_keep=shape.asked,
            ).logits
            return logits.float().log_softmax(-1)[..., 0].mean()


def _kinds(config: PreTrainedConfig) -> list[str | None]:
    """Return the types of the LLM's layers, each once."""
    return list(dict.fromkeys(getattr(config.get_text_config(), "layer_types", None) or [None]))


def _cut(config: PreTrainedConfig, repeats: int) -> PreTrainedConfig:
    """Return the configuration with ``repeats`` layers of each type, of the text part alone."""
    text: PreTrainedConfig = type(config.get_text_config()).from_dict(config.get_text_config().to_dict())
    kinds = _kinds(config)
    text.num_hidden_layers = repeats * len(kinds)
    if kinds != [None]:
        text.layer_types = repeats * kinds
    return text
