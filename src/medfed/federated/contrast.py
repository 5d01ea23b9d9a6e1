"""Contrasts of representations: MOON's term (Li et al. 2021) and CreamFL's losses and scores (Yu et al. 2023).

A row of all tensors of a call is the same example. Rows whose ``has`` is false (the modality is absent) count nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROWS_AT_ONCE = 1024
"""Rows of a similarity matrix that are held in memory at a time."""


class Rows(NamedTuple):
    """Representations of a set of examples in one modality.

    Attributes:
        vectors: unit vectors; zeros where the modality is absent.
        has: whether the example has one.
    """

    vectors: Float[Tensor, "example dim"]
    has: Bool[Tensor, " example"]


def pull_push(
    near: Float[Tensor, " batch"], far: Float[Tensor, " batch"], temperature: float
) -> Float[Tensor, " batch"]:
    """Return −log(eⁿ/(eⁿ + eᶠ)) with n = near/τ and f = far/τ: low when ``near`` is the larger similarity."""
    return F.softplus((far - near) / temperature)


def matching_loss(
    own: Float[Tensor, "batch dim"], rows: Int[Tensor, " batch"], others: Sequence[Rows], temperature: float
) -> Float[Tensor, " batch"]:
    """Return −log(exp(zᵀg_k/τ) / Σ_j exp(zᵀg_j/τ)), the mean over ``others`` that have example k; inter-modal.

    Args:
        own: the batch's representations z.
        rows: which row k of ``others`` each of them belongs to.
        others: global representations g.
        temperature: τ.
    """
    total, count = own.new_zeros(len(own)), own.new_zeros(len(own))
    for vectors, has in others:
        logits = (own @ vectors.T / temperature).masked_fill(~has, -torch.inf)
        known = has[rows]
        # An unknown pair would be ∞; its row is replaced before the logarithm so that no gradient becomes NaN.
        safe = torch.where(known.unsqueeze(1), logits, torch.zeros_like(logits))
        total = total + F.cross_entropy(safe, rows, reduction="none") * known
        count = count + known
    return total / count.clamp(min=1)


def matching_score(own: Float[Tensor, "example dim"], others: Sequence[Rows]) -> Float[Tensor, " example"]:
    """Return s_k = log(exp(z_kᵀg_k) / Σ_{j≠k} exp(z_kᵀg_j)), the mean over ``others`` that have example k; else 0.

    This is the score of global-local contrastive aggregation. Vectors are unit vectors, so it lies in
    ±2 − log(examples − 1) and its exponential can be taken as it is.
    """
    total, count = own.new_zeros(len(own)), own.new_zeros(len(own))
    for vectors, has in others:
        for first in range(0, len(own), ROWS_AT_ONCE):
            rows = torch.arange(first, min(first + ROWS_AT_ONCE, len(own)), device=own.device)
            logits = own[rows] @ vectors.T
            paired = logits.gather(1, rows.unsqueeze(1)).squeeze(1)
            rest = logits.masked_fill(~has, -torch.inf).scatter(1, rows.unsqueeze(1), -torch.inf).logsumexp(1)
            known = has[rows] & rest.isfinite()
            total[rows] += torch.where(known, paired - rest, torch.zeros_like(rest))
            count[rows] += known
    return total / count.clamp(min=1)


class Ensemble:
    """A streaming mean of the clients' representations of one modality, each row weighted by the softmax of its score.

    Float64; memory holds one sum, however many clients there are.

    Args:
        others: global representations that the score is taken against.
    """

    def __init__(self, others: Sequence[Rows]) -> None:
        self._others = [Rows(vectors.double(), has) for vectors, has in others]
        shape = self._others[0].vectors.shape
        self._sums = torch.zeros(shape, dtype=torch.float64)
        self._weights = torch.zeros(shape[0], dtype=torch.float64)

    def add(self, vectors: Float[Tensor, "example dim"], sent: Bool[Tensor, " example"]) -> None:
        """Add a client's representations of the examples ``sent``; they are scaled to unit length, whatever it sent."""
        unit = F.normalize(vectors.double(), dim=-1)
        weights = matching_score(unit, self._others).exp() * sent
        self._weights += weights
        self._sums += weights.unsqueeze(1) * unit

    def mean(self) -> Rows:
        """Return Σ_c softmax_c(s) z_c of every example, and which of them any client sent."""
        has = self._weights > 0
        return Rows((self._sums / self._weights.where(has, 1.0).unsqueeze(1)).float(), has)
