"""Length bucketing: examples of similar prompt length share a forward, instead of padding all to the longest.

A forward costs its padded positions, and a fixed part that does not depend on them (Python, kernel launches). Groups of
examples sorted by length are cut where that sum is least: a tiny LLM is not run twice to save ten positions, a large
one is. The fixed part is counted in positions, from the size of the LLM alone: nothing is timed while a run goes on,
so a resumed run makes the same buckets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

MULTIPLIES_PER_LAYER = {"cpu": 1e7, "cuda": 5e10}
"""Multiplications that a device could do in the time that a decoder layer takes apart from its positions: measured on
one core, and for a GPU half a millisecond of launches at 100 TFLOP/s. It only has to be right within a factor of a few.
"""


def overhead(llm: nn.Module, num_layers: int) -> float:
    """Return the fixed cost of a forward in positions.

    Args:
        llm: a causal LM; only the size and the place of its weights count.
        num_layers: its decoder layers.
    """
    embeddings = llm.get_input_embeddings().weight  # type: ignore[operator]
    body = sum(value.numel() for value in llm.parameters() if value.shape != embeddings.shape)
    per_device = MULTIPLIES_PER_LAYER.get(embeddings.device.type, MULTIPLIES_PER_LAYER["cuda"])
    return per_device * num_layers / max(body, 1)


def buckets(lengths: Sequence[int], sizes: Sequence[int], fixed: float) -> list[list[int]]:
    """Divide groups so that Σ rows x longest + ``fixed`` per bucket is least; each bucket in the order given.

    Args:
        lengths: positions of every group's examples.
        sizes: examples of every group.
        fixed: cost of a bucket, in positions.
    """
    distinct = sorted(set(lengths))
    rows = [0]
    for length in distinct:
        rows.append(rows[-1] + sum(size for size, own in zip(sizes, lengths, strict=True) if own == length))
    cost, start = [0.0], [0]
    for end, longest in enumerate(distinct, 1):
        options = [cost[begin] + (rows[end] - rows[begin]) * longest + fixed for begin in range(end)]
        cost.append(min(options))
        start.append(options.index(cost[-1]))
    found: list[list[int]] = []
    end = len(distinct)
    while end:
        held = set(distinct[start[end] : end])
        found.append([number for number, length in enumerate(lengths) if length in held])
        end = start[end]
    return found[::-1]


class Seam:
    """Cuts a graph in two: what lies above is run and differentiated in pieces, what lies below once."""

    def __init__(self) -> None:
        self._cuts: list[tuple[Tensor, Tensor]] = []

    def cut(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return ``value`` as a leaf that gathers gradients; one that needs none stays as it is."""
        if not value.requires_grad:
            return value
        leaf = value.detach().requires_grad_()
        self._cuts.append((value, leaf))
        return leaf

    def backward(self, *losses: Float[Tensor, ""]) -> None:
        """Hand the gathered gradients on, with those of ``losses`` that lie below the cut themselves."""
        below: list[tuple[Tensor, Tensor | None]] = [(loss, None) for loss in losses if loss.requires_grad]
        below += [(value, leaf.grad) for value, leaf in self._cuts if leaf.grad is not None]
        if below:
            torch.autograd.backward([value for value, _ in below], [grad for _, grad in below])
