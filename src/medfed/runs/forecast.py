"""What an injection will take of memory, before it takes it, from the LLM's configuration alone.

No weight of the LLM is read: its parameters are counted on PyTorch's meta device. What a step keeps, and how long it
takes, comes from a trial (:mod:`medfed.runs.forecast`).

A trial of a few layers of the LLM, before it is loaded: how long a step takes, and what it keeps to go backward.

The LLM is built with one and with two layers of each kind (full and sliding attention have a mask each), random weights
and experts on them, and runs a step of each in turn: their difference is what layers cost and keep, on this device, as
the code does it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from medfed.core.errors import StudyError
from medfed.injection.experts import RoutedLoraModel, add_experts, flattens
from medfed.injection.model import Projector
from medfed.injection.router import Router
from medfed.llm.masks import windows_of
from medfed.llm.targets import projections
from medfed.study.foundation import HuggingFaceSettings
from medfed.study.injection import InjectionSettings

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
        dims: token width of everything that is shown, as :class:`medfed.injection.model.InjectedModel` takes it.
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
