"""A decoder of 7B shape in bf16 on a GPU: tokens a second, memory, and the share of what the device can do.

Random weights; as many of the 32 layers as fit. The roof is measured on the device in the same turns. For a long
prompt it is matrix products of the same FLOPs, for one token copies of the same bytes. In toy form it runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.adapters import RANK, Experts, P, using
from benchmarks.bytes import peak_bytes, size
from benchmarks.llama import llama
from benchmarks.rows import Row, Target, counted, left_out
from benchmarks.timing import Bench, Run, Versus

FROZEN, FUSED, SMALL, LOOP = "frozen model", "experts", f"PEFT LoRA of rank {RANK}", "loop over experts"
FULL, FULL_BF16 = f"PEFT LoRA of rank {P * RANK}", f"PEFT LoRA of rank {P * RANK}, bf16"
MATMULS, COPIES = "peak matrix products", "peak copying"
NUM_LAYERS, LAYER_BYTES, STEP_BYTES = 32, 405e6, 3e9
"""Of a layer: its weights, and what a training step of 2,048 tokens keeps in its largest form, the loop."""


def gpu_rows(bench: Bench) -> Iterator[Row]:
    """Yield forward, forward + backward, one token, and memory."""
    if torch.cuda.is_available():
        yield from device_rows(bench, "cuda")
    elif bench.quick:
        yield from device_rows(bench, "cpu")
    else:
        yield left_out("gpu", "7B-shaped decoder in bf16", FUSED, FULL, "no GPU on this machine", Target("≤", 1.05))


def device_rows(bench: Bench, device: str) -> Iterator[Row]:
    """Measure on ``device``."""
    width, layers, batch, length = (64, 2, 2, 8) if bench.quick else (4096, _layers_that_fit(), 4, 512)
    base = llama(width, layers, intermediate=width * 43 // 16, vocabulary=512, dtype=torch.bfloat16, device=device)
    experts = Experts(base)
    models: dict[str, nn.Module] = {
        FROZEN: base,
        FUSED: experts.fused(),
        SMALL: experts.lora(RANK),
        FULL: experts.lora(P * RANK, alpha=experts.alpha),
        FULL_BF16: Experts(base, torch.bfloat16).lora(P * RANK, alpha=experts.alpha),
        LOOP: experts.looped(),
    }
    x = torch.randn(batch, length, width, dtype=torch.bfloat16, device=device)
    kind = f"Llama {width}×{layers} bfloat16, {x.device.type}"
    race = partial(bench.race, "gpu", tolerance=0.1, clock="wall time", seconds=20.0)
    pairs = [
        Versus(FUSED, FROZEN),
        Versus(FUSED, SMALL),
        Versus(FUSED, FULL, Target("≤", 1.05), same=True),
        Versus(FUSED, FULL_BF16, same=True),
        Versus(LOOP, FUSED, same=True),
    ]
    roof = [Versus(MATMULS, FROZEN), Versus(MATMULS, FUSED, note="share of the roof")]
    forward = _runs(models, experts.alpha, x, _forward)
    title, count = f"{kind}, {batch * length:,} tokens", batch * length
    yield from race(f"{title}, forward", forward | _matmuls(forward[FROZEN], x, bench), [*pairs, *roof], tokens=count)
    training = _runs(models, experts.alpha, x, _forward_backward)
    yield from race(f"{title}, forward + backward", training, pairs, tokens=count)
    single = _runs(models, experts.alpha, x[:, :1], _forward)
    roof = [Versus(COPIES, FROZEN), Versus(COPIES, FUSED, note="share of the roof")]
    yield from race(f"{kind}, one token for each of {batch}", single | _copies(base), [*pairs, *roof], tokens=batch)
    peaks = {name: peak(run, models.values(), device) for name, run in training.items()}
    for over, under in ((FUSED, FROZEN), (FUSED, FULL), (LOOP, FUSED)):
        setting, takes = f"{title}, forward + backward", size(peaks[over])
        yield counted("gpu", setting, (over, peaks[over]), (under, peaks[under]), measure="peak bytes", takes=takes)


def _layers_that_fit() -> int:
    free, _ = torch.cuda.mem_get_info()
    return max(1, min(NUM_LAYERS, int(0.9 * free / (LAYER_BYTES + STEP_BYTES))))


def _runs(
    models: Mapping[str, nn.Module], alpha: Tensor, x: Tensor, do: Callable[[nn.Module, Tensor], Tensor]
) -> dict[str, Run]:
    def run(name: str, model: nn.Module) -> Tensor:
        if name not in (FUSED, LOOP):
            return do(model, x)
        with using(model, alpha.unsqueeze(0).clone().requires_grad_(do is _forward_backward)):
            return do(model, x)

    return {name: partial(_waited, partial(run, name, model)) for name, model in models.items()}


def _forward(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(inputs_embeds=x, logits_to_keep=1, use_cache=False).logits
    return logits


def _forward_backward(model: nn.Module, x: Tensor) -> Tensor:
    model.zero_grad(set_to_none=True)
    leaf = x.detach().requires_grad_()
    logits: Tensor = model(inputs_embeds=leaf, logits_to_keep=1, use_cache=False).logits
    logits.float().sum().backward()  # type: ignore[no-untyped-call]
    return logits.detach()


def _waited(run: Callable[[], Tensor]) -> Tensor:
    """Return what ``run`` gives when the device is done with it."""
    result = run()
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
    return result


def _matmuls(forward: Run, x: Tensor, bench: Bench) -> dict[str, Run]:
    """Return square matrix products of as many FLOPs as ``forward`` has."""
    with FlopCounterMode(display=False) as counter:
        forward()
    side = 64 if bench.quick else 8192
    number = max(1, round(counter.get_total_flops() / (2 * side**3)))
    scale = counter.get_total_flops() / (number * 2 * side**3)
    rows = max(1, round(side * scale))
    left, right = (torch.randn(count, side, dtype=x.dtype, device=x.device) for count in (rows, side))

    def run() -> Tensor:
        for _ in range(number):
            product = left @ right
        return product

    return {MATMULS: partial(_waited, run)}


def _copies(base: nn.Module) -> dict[str, Run]:
    """Return a copy that moves as many bytes as the layers' weights have: one token reads each once."""
    weights = [value for name, value in base.named_parameters() if ".layers." in name]
    half = sum(value.nbytes for value in weights) // 2
    from_ = torch.zeros(half, dtype=torch.uint8, device=weights[0].device)
    to = torch.empty_like(from_)
    return {COPIES: partial(_waited, lambda: to.copy_(from_))}


def peak(run: Run, models: Iterable[nn.Module], device: str) -> float:
    """Return how many bytes more than at its start are held at the worst moment of ``run``.

    Weights are there before it and do not count, and gradients that earlier runs left in ``models`` are dropped first.
    """
    for model in models:
        model.zero_grad(set_to_none=True)
    if device == "cpu":
        return float(peak_bytes(run))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return float(torch.cuda.max_memory_allocated() - before)
