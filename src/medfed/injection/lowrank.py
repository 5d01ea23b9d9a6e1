"""Low-rank updates of a weight as pairs of factors, and their best approximation of a smaller rank.

An update of ``W [out, in]`` is ``up @ down``. Its singular value decomposition comes from the QR decompositions of the
two factors and the SVD of a matrix as small as the rank (Eckart & Young 1936 for the truncation): the dense update is
never formed. Everything is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from medfed.errors import StudyError


class Factors(NamedTuple):
    """An update ``up @ down`` of one layer's weight."""

    down: Float[Tensor, "rank in"]
    up: Float[Tensor, "out rank"]


class Loss(NamedTuple):
    """What is lost of an update: squared Frobenius norms of what was cut off and of the whole."""

    cut: float
    whole: float

    @property
    def relative_error(self) -> float:
        """Frobenius norm of the difference over that of the update; 0 for an update that is zero."""
        return math.sqrt(self.cut / self.whole) if self.whole else 0.0

    @property
    def energy_kept(self) -> float:
        """Share of the squared norm that is left."""
        return 1 - self.cut / self.whole if self.whole else 1.0


class Truncation(NamedTuple):
    """Layers cut to one rank.

    Attributes:
        rank: of every layer now.
        factors: by layer.
        losses: by layer.
    """

    rank: int
    factors: dict[str, Factors]
    losses: dict[str, Loss]

    @property
    def overall(self) -> Loss:
        """The loss of all layers together."""
        return Loss(sum(loss.cut for loss in self.losses.values()), sum(loss.whole for loss in self.losses.values()))

    @property
    def worst(self) -> str:
        """The layer with the largest relative error."""
        return max(self.losses, key=lambda layer: self.losses[layer].relative_error)


def truncated(layers: Mapping[str, Factors], rank: int) -> Truncation:
    """Return the nearest updates of at most ``rank``, layer by layer; a rank that holds everything leaves all as it is.

    Raises:
        StudyError: ``rank`` is below 1.
    """
    if rank < 1:
        raise StudyError(f"--rank {rank} leaves nothing", hint="give a rank of 1 or more, or leave --rank out")
    largest = max(len(factors.down) for factors in layers.values())
    if rank >= largest:
        norms = {name: float(singular_values(factors).square().sum()) for name, factors in layers.items()}
        return Truncation(largest, dict(layers), {name: Loss(0.0, norm) for name, norm in norms.items()})
    cut = {name: _cut(factors, rank) for name, factors in layers.items()}
    return Truncation(
        rank, {name: factors for name, (factors, _) in cut.items()}, {name: loss for name, (_, loss) in cut.items()}
    )


def singular_values(factors: Factors) -> Float[Tensor, " value"]:
    """Return the singular values of ``up @ down``, largest first, in float64."""
    values: Tensor = torch.linalg.svdvals(_core(factors)[1])
    return values


def _core(factors: Factors) -> tuple[Float[Tensor, "out left"], Float[Tensor, "left right"], Float[Tensor, "in right"]]:
    """Return Q, C, P with ``up @ down = Q C Pᵀ``, where Q and P have orthonormal columns."""
    left, above = torch.linalg.qr(factors.up.double())
    right, beside = torch.linalg.qr(factors.down.double().T)
    return left, above @ beside.T, right


def _cut(factors: Factors, rank: int) -> tuple[Factors, Loss]:
    left, core, right = _core(factors)
    U, values, Vh = torch.linalg.svd(core, full_matrices=False)
    root = values[:rank].sqrt()  # half to each side, so that neither overflows a half-precision server
    up, down = left @ (U[:, :rank] * root), (Vh[:rank] * root.unsqueeze(1)) @ right.T
    missing = rank - len(root)  # a layer narrower than the rank: zeros, so that all layers have one rank
    up, down = torch.nn.functional.pad(up, (0, missing)), torch.nn.functional.pad(down, (0, 0, 0, missing))
    squares = values.square()
    loss = Loss(float(squares[rank:].sum()), float(squares.sum()))
    return Factors(down.to(factors.down.dtype).contiguous(), up.to(factors.up.dtype).contiguous()), loss
