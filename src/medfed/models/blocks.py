"""The parts of a BLIP-style model: the fusion that lets a question read other modalities, and the byte decoder.

Both are stacks of pre-norm blocks of self-attention, cross-attention and MLP (Vaswani et al. 2017, decoder layer).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from medfed.tasks.generation import NUM_IDS


class Tokens(NamedTuple):
    """Token vectors, and which of them are there."""

    values: Float[Tensor, "batch tokens dim"]
    there: Bool[Tensor, "batch tokens"]


class Fusion(nn.Module):
    """The question, led by an [Encode] token, reads the tokens of the other modalities.

    Two learned tokens are always there, so that attention has something to look at when a modality is absent: [Encode]
    leads the question, and ``nothing`` the context.
    """

    def __init__(
        self, dims: Mapping[str, int], depth: int, dim: int, num_heads: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.project = nn.ModuleDict(
            {name: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim)) for name, width in dims.items()}
        )
        self.encode = nn.Parameter(0.02 * torch.randn(dim))
        self.nothing = nn.Parameter(0.02 * torch.randn(dim))
        self.blocks = _stack(depth, dim, num_heads, hidden, dropout)

    def forward(self, parts: Mapping[str, Tokens], question: str) -> tuple[Tokens, Tokens]:
        """Return the question after the blocks and the context, each led by its learned token."""
        wide = {name: Tokens(self.project[name](part.values), part.there) for name, part in parts.items()}
        asked = _led(self.encode, [wide[question]])
        context = _led(self.nothing, [part for name, part in wide.items() if name != question])
        fused: Tensor = self.blocks(
            asked.values,
            context.values,
            tgt_key_padding_mask=~asked.there,
            memory_key_padding_mask=~context.there,
        )
        return Tokens(fused, asked.there), context


class ByteDecoder(nn.Module):
    """Causal: the logits at a place depend on the ids up to it, and on the memory."""

    def __init__(self, length: int, depth: int, dim: int, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_IDS, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(length, dim))
        self.blocks = _stack(depth, dim, num_heads, hidden, dropout)
        self.write = nn.Linear(dim, NUM_IDS)

    def forward(self, ids: Int[Tensor, "batch length"], memory: Tokens) -> Float[Tensor, "batch length id"]:
        """Return logits of the id after each of ``ids``."""
        length = ids.shape[1]
        hidden: Tensor = self.blocks(
            self.embed(ids) + self.positions[:length],
            memory.values,
            tgt_mask=torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1),
            memory_key_padding_mask=~memory.there,
        )
        logits: Tensor = self.write(hidden)
        return logits


def _led(first: Float[Tensor, " dim"], parts: list[Tokens]) -> Tokens:
    """Join ``parts`` behind the token ``first``."""
    size = len(parts[0].values)
    values = torch.cat([first.expand(size, 1, -1), *(part.values for part in parts)], 1)
    there = torch.cat([parts[0].there.new_ones(size, 1), *(part.there for part in parts)], 1)
    return Tokens(values, there)


def _stack(depth: int, dim: int, num_heads: int, hidden: int, dropout: float) -> nn.TransformerDecoder:
    layer = nn.TransformerDecoderLayer(
        dim, num_heads, hidden, dropout, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerDecoder(layer, depth, norm=nn.LayerNorm(dim))
