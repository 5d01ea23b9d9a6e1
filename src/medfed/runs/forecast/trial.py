"""A trial of a few layers of the LLM, before it is loaded: what its work takes, and the activations that it keeps.

The LLM is built with one and with two layers of each kind, full and sliding attention, with random weights and with
experts. They run in turn. Their difference is the cost of the layers on this device. Of a large batch a few examples
run, and of a large vocabulary a part, so that the trial takes seconds. Positions, rows of logits, layers and vocabulary
are then scaled up in proportion. The optimizer's step is timed apart, for it does not depend on the batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import NamedTuple

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
_HEAD_WEIGHTS, _HEAD_ROWS = 2**23, 64
"""Of the output layer so many weights run, and for so many rows of logits; the rest is scaled up."""
KNOWN_ERROR = 0.25
"""Share by which the time may differ from its estimate on an idle machine: prompts differ in length, caches in size."""


@dataclass(frozen=True)
class Shape:
    """A batch of prompts: examples, positions of each, and how many of these are answer positions.

    A ``mixed`` one holds examples of several tasks, each with an α of its own where the LLM's layers allow it.
    """

    batch: int
    length: int
    answer_positions: int
    mixed: bool = False


class Work(NamedTuple):
    """Work of the LLM: positions that its layers read, and rows of logits, with and without gradients.

    Attributes:
        read: positions without gradients.
        rows: of logits without gradients.
        learned: positions forward and backward.
        learned_rows: of logits forward and backward.
        updates: steps of the optimizer.
        tokens: positions that are read one at a time, each with its row of logits: answers in words.
    """

    read: float = 0.0
    rows: float = 0.0
    learned: float = 0.0
    learned_rows: float = 0.0
    updates: float = 0.0
    tokens: float = 0.0

    def plus(self, other: Work) -> Work:
        """Return both together."""
        return Work(*(one + two for one, two in zip(self, other, strict=True)))

    def times(self, number: float) -> Work:
        """Return ``number`` times the work."""
        return Work(*(number * value for value in self))


@dataclass(frozen=True)
class Trial:
    """Seconds of the whole LLM for every unit of :class:`Work`, and what a step keeps, scaled up from few layers.

    Seconds on a CPU are those of a core that does nothing else. ``error`` is the share by which a time may be off: what
    repeats differ by, ``KNOWN_ERROR`` at least.
    """

    per: Work
    kept_bytes: int
    error: float = KNOWN_ERROR

    def seconds(self, work: Work) -> float:
        """Return the time of ``work``."""
        return sum(number * taken for number, taken in zip(work, self.per, strict=True))


def trial(
    config: PreTrainedConfig,
    shape: Shape,
    loading: HuggingFaceSettings,
    settings: InjectionSettings,
    device: str,
    texts: Shape | None = None,
) -> Trial:
    """Run the LLM with one and two layers of each kind in turn; weights are random, and not quantised.

    ``config`` is of the LLM's text part, ``shape`` that of a batch of the longest prompts. Of prompts and rehearsed
    ``texts``, which have gradients in turn, the larger count as kept.
    """
    pieces = _Pieces(config, loading, settings, device)
    batch = shape.batch if "cuda" in device else max(1, min(shape.batch, int(_TRIAL_FLOPS / pieces.flops(shape))))
    tried, token, logits = replace(shape, batch=batch), Shape(shape.batch, 1, 1, shape.mixed), Shape(_HEAD_ROWS, 1, 1)
    learned, learned_rows, spread = pieces.seconds("learn", tried, logits)
    read, rows, _ = pieces.seconds("forward", tried, logits)
    tokens, token_rows, _ = pieces.seconds("forward", token, token)
    per = Work(read, rows, learned, learned_rows, pieces.update_seconds(), tokens + token_rows)
    kept = max([shape.batch / batch * pieces.kept_bytes(tried), *([pieces.kept_bytes(texts)] if texts else [])])
    return Trial(per, round(kept), max(KNOWN_ERROR, spread))


class _Pieces:
    """One and two layers of each kind, half and whole of a part of the vocabulary, and how much more the LLM has."""

    def __init__(
        self, config: PreTrainedConfig, loading: HuggingFaceSettings, settings: InjectionSettings, device: str
    ) -> None:
        dtype, width = getattr(torch, loading.dtype), int(config.hidden_size)
        self._vocabulary = int(config.vocab_size)
        self._rows = min(self._vocabulary, max(2, _HEAD_WEIGHTS // width))
        self._layers = int(config.num_hidden_layers) / len(_kinds(config))
        few = [_cut(config, repeats, self._rows) for repeats in (1, 2)]
        self._short, self._long = (_FewLayers(one, dtype, settings, device) for one in few)
        self._heads = [_Head(size, width, dtype, device) for size in (self._rows // 2, self._rows)]
        self._clock = _wall if "cuda" in device else time.process_time

    def flops(self, shape: Shape) -> float:
        """Return the operations of a step of one layer of each kind on one example."""
        return 6 * (num_params(self._long.model) - num_params(self._short.model)) * shape.length

    def seconds(self, do: str, at: Shape, logits: Shape) -> tuple[float, float, float]:
        """Return the seconds of the whole LLM for a position, and for a row of logits; and what repeats differ by.

        ``do`` is the method that runs, on layers in the shape ``at`` and on the output layer in the shape ``logits``.
        """
        runs = [partial(getattr(part, do), at) for part in (self._short, self._long)]
        runs += [partial(getattr(part, do), logits) for part in self._heads]
        taken = _in_turn(runs, self._clock)
        one, two, half, whole = map(min, taken)
        row = max(0.0, whole - half) / (self._rows - self._rows // 2) / logits.batch
        few_rows = row * self._rows * at.batch * at.answer_positions
        position = self._layers * max(0.0, two - one) + max(0.0, 2 * one - two - few_rows)
        return position / (at.batch * at.length), row * self._vocabulary, median(taken[1]) / two - 1

    def update_seconds(self) -> float:
        """Return the seconds of an optimizer's step, on gradients that earlier runs left."""
        short, long = map(min, _in_turn([self._short.update, self._long.update], self._clock))
        return short + (self._layers - 1) * max(0.0, long - short)

    def kept_bytes(self, at: Shape) -> float:
        """Return what a forward pass of the whole LLM keeps for its gradient."""
        one, two = self._short.kept_bytes(at), self._long.kept_bytes(at)
        half, whole = (head.kept_bytes(at) for head in self._heads)
        more_rows = (self._vocabulary - self._rows) / (self._rows - self._rows // 2)
        return one + (self._layers - 1) * (two - one) + more_rows * (whole - half)


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


class _Head:
    """The last part of the vocabulary's rows, as the output layer reads them: logits and their log-softmax."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype, device: str) -> None:
        self._weight = torch.ones(rows, width, dtype=dtype, device=device)

    def learn(self, shape: Shape) -> None:
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

    def __init__(self, config: PreTrainedConfig, dtype: torch.dtype, settings: InjectionSettings, device: str) -> None:
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
        self._mixes = self._routed is not None and not self._routed.flattens_batch()
        self._trained = [value for value in self.model.parameters() if value.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, fused=True) if self._trained else None

    def learn(self, shape: Shape) -> None:
        """Run a forward and a backward pass."""
        self.model.train()
        self._loss(shape).backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Take the optimizer's step on gradients that are there."""
        if self._optimizer is not None:
            nn.utils.clip_grad_norm_(self._trained, 1.0)
            self._optimizer.step()

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
        rows = size if self._mixes and shape.mixed else 1
        alpha = torch.ones(rows, self._num_experts, device=self._device, requires_grad=learning)
        with nullcontext() if self._routed is None else self._routed.routing.using(alpha):
            return run(self.model, self._windows, batch).float().log_softmax(-1)[..., 0].mean()
