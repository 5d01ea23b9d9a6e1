"""The routed experts against their floors: one linear layer at several widths, and a whole decoder.

The floor is a plain LoRA of rank P·r with α multiplied into its B: the same sum without a mixture. ``mixed`` gives each
example of the batch an α of its own. Forward + backward computes the gradients of the input, the experts and α.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.adapters import RANK, Experts, P, using
from benchmarks.llama import llama
from benchmarks.rows import Row, Target
from benchmarks.timing import Bench, Run, Versus

FUSED, MIXED = "experts, one task", "experts, mixed batch"
FULL, SMALL, FULL_BF16 = f"PEFT LoRA of rank {P * RANK}", f"PEFT LoRA of rank {RANK}", "the same with bf16 adapters"
LOOP, LOOP_MIXED, X_LORA = "loop over experts", "loop, mixed batch", "PEFT X-LoRA"
AT_FLOOR, OVER_LOOP = Target("≤", 1.05), Target("≥", 1.5)
Call = Callable[[Tensor], Tensor]


def linear_rows(bench: Bench) -> Iterator[Row]:
    """One linear layer, 1,024 tokens."""
    shapes = [(512, torch.float32, 5.0), (1024, torch.float32, 5.0), (2048, torch.float32, 8.0)]
    shapes += [(4096, torch.float32, 15.0), (4096, torch.bfloat16, 15.0)]
    for width, dtype, seconds in [(64, torch.float32, 0.0), (64, torch.bfloat16, 0.0)] if bench.quick else shapes:
        base = llama(width, 1, intermediate=64, key_value_heads=1, dtype=dtype)
        x = torch.randn(8, 4 if bench.quick else 128, width, dtype=dtype)
        calls = dict(_layer_calls(Experts(base), x))
        kind = f"Linear {width} {str(dtype).removeprefix('torch.')}"
        yield from _both(bench, "experts", f"{kind}, {x[..., 0].numel():,} tokens", calls, x, seconds)


def decoder_rows(bench: Bench) -> Iterator[Row]:
    """A Llama of six layers, width 512, 512 tokens."""
    width, layers, tokens = (64, 2, 8) if bench.quick else (512, 6, 128)
    base = llama(width, layers)
    x = torch.randn(4, tokens, width)
    calls = dict(_decoder_calls(Experts(base), len(x)))
    yield from _both(bench, "decoder", f"Llama {width}×{layers} float32, {4 * tokens} tokens", calls, x, 30.0)


def _layer_calls(experts: Experts, x: Tensor) -> Iterator[tuple[str, Call]]:
    alpha, mixed = experts.alpha.unsqueeze(0), experts.mixed(len(x))
    yield "frozen linear", _projection(experts.base)
    yield from _routed(experts.fused(), _projection, {FUSED: alpha, MIXED: mixed})
    yield SMALL, _projection(experts.lora(RANK))
    yield FULL, _projection(experts.lora(P * RANK, alpha=experts.alpha))
    if x.dtype != torch.float32:
        in_bf16 = Experts(experts.base, x.dtype).lora(P * RANK, alpha=experts.alpha)
        yield FULL_BF16, _projection(in_bf16)
    yield from _routed(experts.looped(), _projection, {LOOP: alpha, LOOP_MIXED: mixed})
    yield X_LORA, experts.x_lora_layer(x)


def _decoder_calls(experts: Experts, batch: int) -> Iterator[tuple[str, Call]]:
    alpha, mixed = experts.alpha.unsqueeze(0), experts.mixed(batch)
    yield "frozen model", _logits(experts.base)
    yield from _routed(experts.fused(), _logits, {FUSED: alpha, MIXED: mixed})
    yield SMALL, _logits(experts.lora(RANK))
    yield FULL, _logits(experts.lora(P * RANK, alpha=experts.alpha))
    yield from _routed(experts.looped(), _logits, {LOOP: alpha, LOOP_MIXED: mixed})
    yield X_LORA, _logits(experts.x_lora())


def _both(
    bench: Bench, group: str, setting: str, calls: Mapping[str, Call], x: Tensor, seconds: float
) -> Iterator[Row]:
    """Yield the rows of forward, and of forward + backward."""
    tolerance = 1e-4 if x.dtype == torch.float32 else 0.05
    pairs = list(_pairs(calls, small="512" in setting))
    forward = {name: partial(_forward, call, x) for name, call in calls.items()}
    yield from bench.race(group, f"{setting}, forward", forward, pairs, seconds=seconds, tolerance=tolerance)
    both: dict[str, Run] = {name: partial(_forward_backward, call, x) for name, call in calls.items()}
    title = f"{setting}, forward + backward"
    yield from bench.race(group, title, both, pairs, seconds=1.5 * seconds, tolerance=tolerance)


def _pairs(calls: Mapping[str, Call], *, small: bool) -> Iterator[Versus]:
    """Yield what is compared; the loop's target is that of width 512."""
    yield Versus(FUSED, next(iter(calls)))
    yield Versus(FUSED, SMALL)
    yield Versus(FUSED, FULL, AT_FLOOR, same=True)
    if FULL_BF16 in calls:
        yield Versus(FUSED, FULL_BF16, AT_FLOOR, same=True)
    yield Versus(MIXED, FULL, AT_FLOOR)
    yield Versus(LOOP, FUSED, OVER_LOOP if small else None, same=True)
    yield Versus(LOOP_MIXED, MIXED, OVER_LOOP if small else None, same=True)
    yield Versus(X_LORA, FUSED, same=True)


def _forward(call: Call, x: Tensor) -> Tensor:
    with torch.no_grad():
        return call(x)


def _forward_backward(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    out = call(leaf)
    out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]
    assert leaf.grad is not None  # noqa: S101
    return out.detach(), leaf.grad


def _routed(
    model: nn.Module, read: Callable[[nn.Module], Call], alphas: Mapping[str, Tensor]
) -> Iterator[tuple[str, Call]]:
    """Yield a routed model's call for every α."""
    inner = read(model)
    yield from ((name, _mixing(model, inner, alpha)) for name, alpha in alphas.items())


def _mixing(model: nn.Module, inner: Call, alpha: Tensor) -> Call:
    """Return the call under ``alpha``, whose gradient is wanted where gradients are."""

    def call(x: Tensor) -> Tensor:
        with using(model, alpha.clone().requires_grad_(torch.is_grad_enabled())):
            return inner(x)

    return call


def fresh(call: Call, module: nn.Module) -> Call:
    """Return ``call`` after dropping the gradients that the last one left in ``module``."""
    trained = [value for value in module.parameters() if value.requires_grad]

    def dropped(x: Tensor) -> Tensor:
        for value in trained:
            value.grad = None
        return call(x)

    return dropped


def _projection(model: nn.Module) -> Call:
    """Return the query projection of the first layer."""
    layer = next(module for name, module in model.named_modules() if name.endswith("layers.0.self_attn.q_proj"))
    return fresh(layer, layer)


def _logits(model: nn.Module) -> Call:
    """Return the model's logits of the last position."""
    return fresh(lambda x: model(inputs_embeds=x, logits_to_keep=1, use_cache=False).logits, model)
