"""Three encoders that meet in one space (Saporta et al. 2024, Contrasting with Symile; the pairwise form is CLIP's).

Every modality's mean token goes through a linear projection to ``dim`` and is normalised to length 1. The temperature
is learned, one per task: a product of ``order`` vectors (3 for the Symile loss, 2 for a pairwise one) is multiplied by
``scale · dim^(order/2 − 1)``. The power of ``dim`` undoes that a product of more unit vectors is smaller, so one
initial temperature serves both losses. The factor is dealt out evenly over the vectors, as
they are all that a loss sees.

At the paper's size: encoders ResNet-50 (film, 320 px: ``resnet``), ResNet-18 (ECG, 5000 × 12, as a picture) and
``labs-mlp`` with ``hidden`` (256, 1024), and ``dim`` 8192. The nearest here for the ECG is a wide ``conv1d``.

Weights start from the seed, not from ImageNet.

Deviation: the paper ends its encoders with a layer norm, whose vectors have length √dim, and starts its temperature
    accordingly; here they have length 1, and the power of ``dim`` above makes up for it.

Contrastive losses over modalities: Symile (Saporta et al. 2024) and pairwise InfoNCE (Radford et al. 2021, CLIP).

Both take representations ``[batch, modality, dim]`` whose products are logits already (the model scales them) and
which modality of which example is present. The multilinear inner product (MIP) of vectors is the sum over coordinates
of their product; of two vectors it is the inner product.

Symile contrasts, for each modality as the anchor, an example's triple with triples whose *other* modalities were
shuffled. Negatives by ``n``: the other modalities are shuffled once each, which gives n − 1 negatives per anchor (the
authors' O(n) form). Negatives by ``n_squared``: every combination of the other modalities, n² − 1 negatives per anchor.

Deviation: the shuffles are given, not drawn here, so that a loss is a pure function of its arguments.
Deviation: the authors learn an embedding for an absent modality (in their Symile-M3 experiments); here an incomplete
    example is left out of the Symile loss, and of the pairs it lacks in the pairwise one. So a client that lacks a
    modality altogether has a Symile loss of 0 and learns nothing from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.core.errors import StudyError
from medfed.core.types import Batch
from medfed.modalities.base import Modality
from medfed.models.base import Encoder, FederatedModel
from medfed.study.models import SymileSpec
from medfed.study.parts import EncoderSpec
from medfed.tasks.base import Task
from medfed.tasks.retrieval import Retrieval


class SymileModel(FederatedModel):
    """Encoders with projections, and a temperature per task."""

    def __init__(
        self,
        spec: SymileSpec,
        encoders: Mapping[str, EncoderSpec],
        modalities: Mapping[str, Modality],
        tasks: tuple[Task, ...],
    ) -> None:
        super().__init__()
        self.dim = spec.dim
        used = sorted({name for task in tasks for name in task.modalities})
        self.encoders = nn.ModuleDict(
            {name: Projected(encoders[name].build(modalities[name]), spec.dim) for name in used}
        )
        self.heads = nn.ModuleDict({task.name: Temperature(spec) for task in map(_retrieval, tasks)})

    def representations(self, task: Task, batch: Batch) -> dict[str, Float[Tensor, "batch dim"]]:
        """Return every modality's projected vector, of length 1; zeros where absent."""
        return {name: self._vectors(name, batch.inputs[name], batch.present[name]) for name in task.modalities}

    def forward(self, task: Task, batch: Batch) -> Float[Tensor, "batch modality dim"]:
        """Return the vectors of :meth:`representations`, scaled so that their products are logits."""
        order = _retrieval(task).order
        vectors = torch.stack(list(self.representations(task, batch).values()), 1)
        scale: Tensor = self.heads[task.name]()
        scaled: Tensor = vectors * (scale * self.dim ** (order / 2 - 1)) ** (1 / order)
        return scaled

    def _vectors(
        self, modality: str, samples: Float[Tensor, "batch *sample"], present: Bool[Tensor, " batch"]
    ) -> Float[Tensor, "batch dim"]:
        if bool(present.all()):
            whole: Tensor = self.encoders[modality](samples)
            return whole
        vectors = samples.new_zeros(len(samples), self.dim)
        if bool(present.any()):
            vectors[present] = self.encoders[modality](samples[present]).to(vectors.dtype)
        return vectors


class Projected(nn.Module):
    """An encoder, the mean of its tokens, and a linear projection to length 1."""

    def __init__(self, encoder: Encoder, dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Linear(encoder.dim, dim)

    def forward(self, samples: Float[Tensor, "batch *sample"]) -> Float[Tensor, "batch dim"]:
        """Return one vector of length 1 per sample."""
        return F.normalize(self.projection(self.encoder(samples).mean(1)), dim=-1)


class Temperature(nn.Module):
    """A learned scale, kept as its logarithm and bounded from above."""

    def __init__(self, spec: SymileSpec) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(spec.temperature)))
        self.maximum = math.log(spec.max_scale)

    def forward(self) -> Float[Tensor, ""]:
        """Return the scale."""
        return self.logit_scale.clamp(max=self.maximum).exp()


def _retrieval(task: Task) -> Retrieval:
    if not isinstance(task, Retrieval):
        raise StudyError(
            f"the model 'symile' aligns modalities and has no head for a task of kind {task.kind!r}",
            where=f"task {task.name!r}",
            hint="train tasks such as 'symile' with it, or choose another model",
        )
    return task


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
    own = vectors[:, anchor]
    positive = vectors.prod(1).sum(-1)
    if shuffles is not None:
        mixed = torch.stack([vectors[shuffles[number], number] for number in others]).prod(0)
        logits = (own @ mixed.T).diagonal_scatter(positive)
        return F.cross_entropy(logits, torch.arange(len(own), device=own.device))
    mixed = vectors[:, others[0]]
    for number in others[1:]:
        mixed = (mixed[:, None] * vectors[None, :, number]).flatten(0, 1)
    return (torch.logsumexp(own @ mixed.T, 1) - positive).mean()


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
            own = torch.arange(len(logits), device=logits.device)
            total = total + (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return total
