"""Memory of the routed experts in a training step: what is kept for the backward pass, and the most held at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.adapters import RANK, Experts, P, using
from benchmarks.bytes import peak_bytes, saved_bytes, size
from benchmarks.llama import llama
from benchmarks.rows import Row, Target, counted
from benchmarks.timing import Bench

FUSED, FULL, LOOP, X_LORA, FROZEN = (
    "experts",
    f"PEFT LoRA of rank {P * RANK}",
    "loop over experts",
    "PEFT X-LoRA",
    "base",
)
KEPT, PEAK = "bytes kept for backward beyond the frozen model's", "peak bytes"


def memory_rows(bench: Bench) -> Iterator[Row]:
    """A training step of a Llama of six layers: forward with gradients wanted for input, adapters and α."""
    width, layers, tokens = (64, 2, 8) if bench.quick else (512, 6, 128)
    base = llama(width, layers)
    experts, x = Experts(base), torch.randn(4, tokens, width)
    setting = f"Llama {width}×{layers} float32, {4 * tokens} tokens"
    models = {FROZEN: base, FUSED: experts.fused(), FULL: experts.lora(P * RANK), LOOP: experts.looped()}
    models[X_LORA] = experts.x_lora()
    steps = {name: _step(name, model, experts.alpha, x) for name, model in models.items()}
    kept = {name: saved_bytes(step, models[name].parameters()) for name, step in steps.items()}
    peak = {name: peak_bytes(partial(_backward, step)) for name, step in steps.items()}
    extra = {name: value - kept[FROZEN] for name, value in kept.items()}
    for over, under, target in (
        (FUSED, FULL, Target("≤", 1.1)),
        (LOOP, FUSED, Target("≥", 10.0)),
        (X_LORA, FUSED, None),
    ):
        yield counted(
            "memory",
            f"{setting}, activations",
            (over, extra[over]),
            (under, extra[under]),
            measure=KEPT,
            target=target,
            takes=size(extra[over]),
        )
    for over, under in ((FUSED, FROZEN), (FUSED, FULL), (LOOP, FUSED), (X_LORA, FUSED)):
        yield counted(
            "memory",
            f"{setting}, forward + backward",
            (over, peak[over]),
            (under, peak[under]),
            measure=PEAK,
            takes=size(peak[over]),
        )


def _step(name: str, model: nn.Module, alpha: Tensor, x: Tensor) -> Callable[[], Tensor]:
    """Return the forward pass of a training step; frozen and plain models take no α."""

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        inputs = x.detach().requires_grad_()
        if name not in (FUSED, LOOP):
            return _logits(model, inputs)
        with using(model, alpha.unsqueeze(0).clone().requires_grad_()):
            return _logits(model, inputs)

    return step


def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    logits: Tensor = model(inputs_embeds=inputs, logits_to_keep=1, use_cache=False).logits
    return logits


def _backward(step: Callable[[], Tensor]) -> None:
    step().sum().backward()  # type: ignore[no-untyped-call]
