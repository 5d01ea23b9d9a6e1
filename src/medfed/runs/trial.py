"""A trial of a few layers of the LLM, before it is loaded: the time of a step, and the activations that it keeps.

The LLM is built with one and with two layers of each kind, full and sliding attention, with random weights and with
experts. Each runs a step in turn. Their difference is the cost of the layers on this device. Of a large batch a few
examples run, and of a large vocabulary a part, so that the trial takes seconds. Examples, layers and vocabulary are
then scaled up in proportion.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedConfig

from medfed.injection.experts import RoutedLoraModel, add_experts
from medfed.llm.forward import run, windows_of
from medfed.llm.foundation import contiguous_head
from medfed.llm.prompt import PromptBatch
from medfed.study.foundation import HuggingFaceSettings
from medfed.study.injection import InjectionSettings

_TRIAL_FLOPS = 5e10
"""A trial step of one layer takes about this much: half a second on one core."""
_LEAST, _MOST, _BUDGET_SECONDS = 2, 5, 3.0
"""Repeats: at least so many, at most so many, and none is begun after so many seconds."""
_HEAD_WEIGHTS = 2**23
"""Of the output layer so many weights run; the rest is scaled up."""
KNOWN_ERROR = 0.25
"""Share by which a step may differ from its estimate on an idle machine: prompts differ in length, caches in size."""


@dataclass(frozen=True)
class Shape:
    """A batch of prompts: examples, positions of each, and how many of these are answer positions."""

    batch: int
    length: int
    answer_positions: int


@dataclass(frozen=True)
class Trial:
    """Time and memory of the whole LLM for one batch of a :class:`Shape`, scaled up from few of its layers.

    A step is forward, backward and the optimizer's, a token the forward of one more position per example; a step keeps
    activations. Seconds on a CPU are those of a core that does nothing else. ``error`` is the share by which a time may
    be off: what repeats differ by, ``KNOWN_ERROR`` at least.
    """

    step_seconds: float
    forward_seconds: float
    token_seconds: float
    kept_bytes: int
    error: float = KNOWN_ERROR


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

    ``config`` is of the LLM's text part. A ``mixed`` batch holds examples of several tasks, each with an α of its own
    where the LLM's layers allow it.
    """
    dtype = getattr(torch, loading.dtype)
    rows = min(int(config.vocab_size), max(2, _HEAD_WEIGHTS // int(config.hidden_size)))
    short, long = (_FewLayers(_cut(config, repeats, rows), dtype, settings, device, mixed=mixed) for repeats in (1, 2))
    parts: list[_Part] = [short, long]
    if rows < config.vocab_size:
        parts += [_Head(size, int(config.hidden_size), dtype, device) for size in (rows // 2, rows)]
    more_layers = int(config.num_hidden_layers) / len(_kinds(config)) - 1
    more_rows = (int(config.vocab_size) - rows) / (rows - rows // 2)
    flops = 6 * (num_params(long.model) - num_params(short.model)) * shape.length
    batch = shape.batch if "cuda" in device else max(1, min(shape.batch, int(_TRIAL_FLOPS / flops)))
    tried, token = replace(shape, batch=batch), Shape(shape.batch, 1, 1)

    def whole(one: float, two: float, half: float = 0.0, head: float = 0.0) -> float:
        return one + more_layers * max(0.0, two - one) + more_rows * max(0.0, head - half)

    clock = _wall if "cuda" in device else time.process_time
    steps = _in_turn([partial(part.step, tried) for part in parts], clock)
    forwards = _in_turn([partial(part.forward, tried) for part in parts], clock)
    tokens = _in_turn([partial(part.forward, token) for part in parts], clock)
    step, scale = whole(*map(min, steps)), shape.batch / batch
    return Trial(
        step_seconds=scale * step,
        forward_seconds=scale * whole(*map(min, forwards)),
        token_seconds=whole(*map(min, tokens)),
        kept_bytes=round(scale * whole(*(float(part.kept_bytes(tried)) for part in parts))),
        error=max(KNOWN_ERROR, whole(*map(median, steps)) / step - 1),
    )


def num_params(model: nn.Module) -> int:
    """Return how many parameters a model has; tied ones count once."""
    return sum(value.numel() for value in model.parameters())


def _kinds(config: PreTrainedConfig) -> list[str | None]:
    """Return the types of the LLM's layers, each once."""
    return list(dict.fromkeys(getattr(config, "layer_types", None) or [None]))


def _cut(config: PreTrainedConfig, repeats: int, rows: int) -> PreTrainedConfig:
    """Return the configuration with ``repeats`` layers of each type, and ``rows`` of the vocabulary."""
    few: PreTrainedConfig = type(config).from_dict(config.to_dict())
    kinds = _kinds(config)
    few.num_hidden_layers, few.vocab_size = repeats * len(kinds), rows
    if few.pad_token_id is not None and few.pad_token_id >= rows:
        few.pad_token_id = None
    if kinds != [None]:
        few.layer_types = repeats * kinds
    return few


def _in_turn(functions: Sequence[Callable[[], None]], clock: Callable[[], float]) -> list[list[float]]:
    """Return the seconds of every function by ``clock``, run in turn after one run of each to warm up."""
    seconds: list[list[float]] = [[] for _ in functions]
    begun = time.perf_counter()
    for number in range(1 + _MOST):
        if number > _LEAST and time.perf_counter() - begun > _BUDGET_SECONDS:
            break
        for function, taken in zip(functions, seconds, strict=True):
            start = clock()
            function()
            taken.append(clock() - start)
    return [taken[1:] for taken in seconds]


def _wall() -> float:
    """Return the time when a GPU has finished what it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def _kept_bytes(forward: Callable[[], Tensor], weights: Iterable[Tensor]) -> int:
    """Return the bytes that ``forward`` keeps for the backward pass, ``weights`` aside."""
    held = {value.untyped_storage().data_ptr() for value in weights}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with saved_tensors_hooks(keep, lambda value: value):
        forward()
    return sum(kept.values())


class _Part(Protocol):
    """A piece of the LLM that runs on a batch of a shape."""

    def step(self, shape: Shape) -> None: ...

    def forward(self, shape: Shape) -> None: ...

    def kept_bytes(self, shape: Shape) -> int: ...


class _Head:
    """The last part of the vocabulary's rows, as the output layer reads them: logits and their log-softmax."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype, device: str) -> None:
        self._weight = torch.ones(rows, width, dtype=dtype, device=device)

    def step(self, shape: Shape) -> None:
        """Run forward and backward."""
        self._loss(shape).backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def forward(self, shape: Shape) -> None:
        """Run forward."""
        self._loss(shape)

    def kept_bytes(self, shape: Shape) -> int:
        """Return what a forward pass keeps, the weight aside."""
        return _kept_bytes(lambda: self._loss(shape), [self._weight])

    def _loss(self, shape: Shape) -> Float[Tensor, ""]:
        size = (shape.batch, shape.answer_positions, self._weight.shape[1])
        hidden = torch.ones(size, dtype=self._weight.dtype, device=self._weight.device)
        logits = F.linear(hidden.requires_grad_(torch.is_grad_enabled()), self._weight)
        return logits.float().log_softmax(-1)[..., 0].mean()


class _FewLayers:
    """The LLM cut to few layers, with experts."""

    def __init__(
        self, config: PreTrainedConfig, dtype: torch.dtype, settings: InjectionSettings, device: str, *, mixed: bool
    ) -> None:
        with torch.device(device):
            self.model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
        self.model.requires_grad_(False)
        contiguous_head(self.model)
        self._width = int(self.model.get_input_embeddings().weight.shape[1])
        self._num_experts = settings.num_experts
        self._windows, self._dtype, self._device = windows_of(self.model), dtype, device
        tuner = add_experts(self.model, settings).base_model if settings.num_experts else None
        self._routed = tuner if isinstance(tuner, RoutedLoraModel) else None
        self.model.eval()
        self._mixed = mixed and self._routed is not None and not self._routed.flattens_batch()
        self._trained = [value for value in self.model.parameters() if value.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, fused=True) if self._trained else None

    def step(self, shape: Shape) -> None:
        """Run a forward and a backward pass, and the optimizer's step."""
        self.model.train()
        self._loss(shape).backward()  # type: ignore[no-untyped-call]
        if self._optimizer is not None:
            nn.utils.clip_grad_norm_(self._trained, 1.0)
            self._optimizer.step()
        self.model.zero_grad()

    @torch.no_grad()
    def forward(self, shape: Shape) -> None:
        """Run a forward pass."""
        self.model.eval()
        self._loss(shape)

    def kept_bytes(self, shape: Shape) -> int:
        """Return how much a forward pass keeps for the backward pass, weights aside."""
        self.model.train()
        return _kept_bytes(lambda: self._loss(shape), self.model.parameters())

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
