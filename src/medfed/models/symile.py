"""Three encoders that meet in one space (Saporta et al. 2024, Contrasting with Symile; the pairwise form is CLIP's).

Every modality's mean token goes through a linear projection to ``dim`` and is normalised to length 1. A temperature
is learned per task. A product of ``order`` vectors (3 for the Symile loss, 2 for a pairwise one) is multiplied by
``scale · dim^(order/2 − 1)``. The power of ``dim`` undoes that a product of more unit vectors is smaller, so one
initial temperature serves both losses. The factor is spread evenly over the vectors, as a loss sees only them.

At the paper's size: encoders ResNet-50 (film, 320 px: ``resnet``), ResNet-18 (ECG, 5000 × 12, as a picture) and
``labs-mlp`` with ``hidden`` (256, 1024), and ``dim`` 8192. The nearest here for the ECG is a wide ``conv1d``.

Deviation: the paper ends its encoders with a layer norm, whose vectors have length √dim, and starts its temperature
    accordingly. Here they have length 1, and the power of ``dim`` above makes up for it.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.core.errors import StudyError
from medfed.core.types import Batch
from medfed.models.base import Encoder, Encoders, FederatedModel, Modalities, Tasks
from medfed.study.models import SymileSpec
from medfed.tasks.base import Task
from medfed.tasks.retrieval import Retrieval


class SymileModel(FederatedModel):
    """Encoders with projections, and a temperature per task."""

    def __init__(self, spec: SymileSpec, encoders: Encoders, modalities: Modalities, tasks: Tasks) -> None:
        super().__init__()
        self.dim, self.encoders = spec.dim, nn.ModuleDict()
        for name in sorted({name for task in tasks for name in task.modalities}):
            self.encoders[name] = Projected(encoders[name].build(modalities[name]), spec.dim)
        self.heads = nn.ModuleDict({task.name: Temperature(spec) for task in map(_retrieval, tasks)})

    def representations(self, task: Task, batch: Batch) -> dict[str, Float[Tensor, "batch dim"]]:
        """Return every modality's projected vector, of length 1; zeros where absent."""
        return {name: self._vectors(name, batch) for name in task.modalities}

    def forward(self, task: Task, batch: Batch) -> Float[Tensor, "batch modality dim"]:
        """Return the vectors of :meth:`representations`, scaled so that their products are logits."""
        order = _retrieval(task).order
        vectors = torch.stack(list(self.representations(task, batch).values()), 1)
        return cast(Tensor, vectors * (self.heads[task.name]() * self.dim ** (order / 2 - 1)) ** (1 / order))

    def _vectors(self, modality: str, batch: Batch) -> Float[Tensor, "batch dim"]:
        samples, present = batch.inputs[modality], batch.present[modality]
        if bool(present.all()):
            return cast(Tensor, self.encoders[modality](samples))
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
        what = f"the model 'symile' aligns modalities and has no head for a task of kind {task.kind!r}"
        hint = "train tasks such as 'symile' with it, or choose another model"
        raise StudyError(what, where=f"task {task.name!r}", hint=hint)
    return task
