"""Logits of the asked positions alone: in a batch of several tasks, an answer of one token asks one position per row.

The LLM keeps the trailing positions that the longest answers ask (``logits_to_keep``); a hook on its head takes from
these the ones that each row asks. So the LLM's own forward stays in charge of what it does to its logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def asked_logits(
    llm: nn.Module,
    sizes: Sequence[int],
    counts: Sequence[int],
    run: Callable[[], Float[Tensor, "_ kept vocabulary"]],
) -> list[Float[Tensor, "_ asked vocabulary"]]:
    """Return the logits of the last ``counts[i]`` positions of the ``sizes[i]`` examples of every group.

    Args:
        llm: a causal LM; its head is ``get_output_embeddings``.
        sizes: examples by group, in the batch's order.
        counts: asked positions by group.
        run: runs ``llm`` on the batch, keeping as many positions as the largest of ``counts``.
    """
    most = max(counts)
    if min(counts) == most:
        return list(torch.split(run(), list(sizes)))
    asked = [row_count for size, row_count in zip(sizes, counts, strict=True) for _ in range(size)]
    wanted = torch.arange(most) >= most - torch.tensor(asked).unsqueeze(1)

    def pick(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        hidden: Tensor = inputs[0]
        return (hidden[wanted.to(hidden.device)].unsqueeze(0),)

    handle = llm.get_output_embeddings().register_forward_pre_hook(pick)  # type: ignore[operator]
    try:
        logits = run()[0]
    finally:
        handle.remove()
    parts = torch.split(logits, [size * count for size, count in zip(sizes, counts, strict=True)])
    return [part.view(size, -1, part.shape[-1]) for part, size in zip(parts, sizes, strict=True)]
