"""Contrastive losses over modalities: Symile (Saporta et al. 2024) and pairwise InfoNCE (Radford et al. 2021, CLIP).

Both take representations ``[batch, modality, dim]`` whose products are logits already (the model scales them) and
which modality of which example is present. The multilinear inner product (MIP) of vectors is the sum over coordinates
of their product; of two vectors it is the inner product.

Symile contrasts, for each modality as the anchor, an example's triple with triples whose *other* modalities were
shuffled. Negatives by ``n``: the other modalities are shuffled once each, which gives n − 1 negatives per anchor (the
authors' O(n) form). Negatives by ``n_squared``: every combination of the other modalities, n² − 1 negatives per anchor.

Deviation: the shuffles are given, not drawn here, so that a loss is a pure function of its arguments.
Deviation: the authors learn an embedding for an absent modality (in their Symile-M3 experiments). Here an incomplete
    example is left out of the Symile loss, and of the pairs it lacks in the pairwise one. A client that lacks a
    modality altogether has a Symile loss of 0 and learns nothing from it.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def symile_loss(
    vectors: Float[Tensor, "batch modality dim"],
    present: Bool[Tensor, "batch modality"],
    shuffles: Int[Tensor, "modality complete"] | None,
) -> Float[Tensor, ""]:
    """Return the mean over anchors of the Symile loss over the complete examples.

    Args:
        vectors: representations; a product of one per modality is a logit.
        present: which are there.
        shuffles: per modality a permutation of the complete examples (O(n) negatives); None takes all combinations
            (O(n²)).

    Returns:
        0 (with a gradient of 0) where fewer than two examples are complete: there is nothing to contrast.
    """
    complete = vectors[present.all(1)]
    if len(complete) < 2:
        return vectors.sum() * 0
    anchors = range(complete.shape[1])
    return torch.stack([_anchored(complete, anchor, shuffles) for anchor in anchors]).mean()


def _anchored(
    vectors: Float[Tensor, "complete modality dim"], anchor: int, shuffles: Int[Tensor, "modality complete"] | None
) -> Float[Tensor, ""]:
    others = [number for number in range(vectors.shape[1]) if number != anchor]
    anchored = vectors[:, anchor]
    positive = vectors.prod(1).sum(-1)
    if shuffles is not None:
        mixed = torch.stack([vectors[shuffles[number], number] for number in others]).prod(0)
        logits = (anchored @ mixed.T).diagonal_scatter(positive)
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
    mixed = vectors[:, others[0]]
    for number in others[1:]:
        mixed = (mixed[:, None] * vectors[None, :, number]).flatten(0, 1)
    return (torch.logsumexp(anchored @ mixed.T, 1) - positive).mean()


def pairwise_loss(
    vectors: Float[Tensor, "batch modality dim"], present: Bool[Tensor, "batch modality"]
) -> Float[Tensor, ""]:
    """Return the sum over pairs of modalities of CLIP's symmetric InfoNCE, each over the examples that have both.

    A pair with fewer than two such examples adds 0.
    """
    total = vectors.sum() * 0
    for first in range(vectors.shape[1]):
        for second in range(first + 1, vectors.shape[1]):
            both = present[:, first] & present[:, second]
            if int(both.sum()) < 2:
                continue
            logits = vectors[both, first] @ vectors[both, second].T
            same = torch.arange(len(logits), device=logits.device)
            total = total + (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
    return total
