"""Feature alignment: g maps a modality's encoder tokens into the LLM's width (FedKIM, step 1 of Sec. 2.3.2).

The paper's g is linear; ``mlp`` (two layers, GELU) is the form later vision-language models use (Liu et al. 2024).

Deviation: g starts at the scale of the LLM's own token embeddings, so that no modality token outshouts the text.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

ProjectorKind = Literal["linear", "mlp"]


class Projector(nn.Module):
    """``[batch, tokens, dim]`` → ``[batch, tokens, width]`` for one modality.

    Args:
        kind: ``linear`` or ``mlp``.
        dim: width of the encoder's tokens.
        width: the LLM's hidden size.
        scale: root mean square of the LLM's token embeddings.
        biased: start with a random bias. The LLM normalises what it reads, so of a few numbers through a linear map it
            would see the sign alone.
    """

    def __init__(self, kind: ProjectorKind, dim: int, width: int, scale: float, biased: bool = False) -> None:
        super().__init__()
        last = nn.Linear(dim if kind == "linear" else width, width)
        nn.init.normal_(last.weight, std=scale / last.in_features**0.5)
        nn.init.normal_(last.bias, std=scale / 2) if biased else nn.init.zeros_(last.bias)
        hidden = [] if kind == "linear" else [nn.Linear(dim, width), nn.GELU()]
        self.layers = nn.Sequential(*hidden, last)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens width"]:
        """Project every token."""
        projected: Tensor = self.layers(tokens)
        return projected


def module_name(shown: str) -> str:
    """Return the projector's name of what is shown: PyTorch allows no dot in a module's name."""
    return shown.replace(".", "-")
