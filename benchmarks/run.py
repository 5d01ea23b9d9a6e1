"""``make bench``: fused experts against their floor and against a loop over experts; ratio of medians, interleaved.

Every variant runs once per turn, in turn, so a noisy machine disturbs all alike.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

WIDTH, TOKENS, EXPERTS, RANK, TURNS = 512, 1024, 12, 8, 30


def variants() -> dict[str, Callable[[], Tensor]]:
    """Return forward passes of one linear layer with P experts, by name."""
    torch.manual_seed(0)
    frozen = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)
    down, up = torch.randn(EXPERTS * RANK, WIDTH) * 0.02, torch.randn(WIDTH, EXPERTS * RANK) * 0.02
    for value in (down, up):
        value.requires_grad_()
    alpha, x = torch.rand(EXPERTS).softmax(0), torch.randn(TOKENS, WIDTH)

    def fused() -> Tensor:
        middle = nn.functional.linear(x, down) * alpha.repeat_interleave(RANK)
        return frozen(x) + nn.functional.linear(middle, up)

    def plain() -> Tensor:
        return frozen(x) + nn.functional.linear(nn.functional.linear(x, down), up)

    def looped() -> Tensor:
        out = frozen(x)
        for p in range(EXPERTS):
            rows = slice(p * RANK, (p + 1) * RANK)
            out = out + alpha[p] * nn.functional.linear(nn.functional.linear(x, down[rows]), up[:, rows])
        return out

    return {"frozen linear": lambda: frozen(x), "LoRA of rank P·r": plain, "fused experts": fused, "loop": looped}


def measure(passes: dict[str, Callable[[], Tensor]], backward: bool) -> dict[str, float]:
    """Return the median seconds of every variant."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(TURNS):
        for name, run in passes.items():
            started = time.perf_counter()
            out = run()
            if backward and out.requires_grad:
                out.sum().backward()
            seconds[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread, medians of {TURNS} turns"
    )
    print(f"one linear layer {WIDTH} → {WIDTH}, {TOKENS} tokens, P = {EXPERTS}, r = {RANK}")
    forward, both = measure(variants(), backward=False), measure(variants(), backward=True)
    for name in forward:
        one, two = forward[name] / forward["frozen linear"], both[name] / forward["frozen linear"]
        print(f"{name:20s} forward {one:5.2f} ×   forward and backward {two:5.2f} ×  (frozen forward = 1)")
