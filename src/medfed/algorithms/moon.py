"""MOON: local loss plus a contrast between models (Li et al. 2021, Eq. 3 to 5).

A representation z of the live model is pulled to that of the global model and pushed from that of the client's model
after its last round: −log(exp(sim(z, z_glob)/τ) / (exp(sim(z, z_glob)/τ) + exp(sim(z, z_prev)/τ))), sim the cosine.
With several modalities the term is the mean over them, with several tasks the mean over tasks (FedKIM Eq. 1).

The live model is in training mode, the other two in eval mode with their own batch-norm statistics; the live model's
statistics come from the task loss alone. Where a client has no last round the previous model is the global one: then
both similarities are equal, the term has no gradient, and its passes are left out.

Deviation: z is the encoder's pooled representation; the paper adds a projection head to the network.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from medfed.algorithms.keeping import group
from medfed.core.types import Batch, Broadcast, Params
from medfed.federated.algorithm import Algorithm
from medfed.federated.batches import TaskBatch
from medfed.federated.local import LocalStep, Trained, Upload
from medfed.federated.representations import evaluating, pull_push, representations_at
from medfed.federated.state import Weights, join, persistent_buffers

Representations = dict[str, Tensor]


class Moon(Algorithm):
    """Local loss + μ·contrast. With μ = 0 it is FedAvg, bit for bit.

    Attributes:
        mu: μ, weight of the contrast.
        temperature: τ.
    """

    name: ClassVar[str] = "moon"
    mu: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=0.5, gt=0)

    def penalty(self, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Tensor | None:
        """Return μ times the contrast of the step's batches, or None in a client's first round."""
        if self.mu == 0 or not client_state:
            return None
        previous = Weights(group(client_state, "params"), group(client_state, "buffers"))
        terms = [
            self._term(step, item, Weights(broadcast.params, broadcast.buffers), previous) for item in step.batches
        ]
        known = [term for term in terms if term is not None]
        return self.mu * torch.stack(known).sum() if known else None

    def upload(self, trained: Trained, broadcast: Broadcast, client_state: Params) -> Upload:
        """Send as FedAvg does and keep the local model for the next round."""
        sent = super().upload(trained, broadcast, client_state)
        kept = join({"params": trained.weights.params, "buffers": trained.weights.buffers})
        return Upload(sent.delta, sent.buffers, client_state=kept)

    def _term(self, step: LocalStep, item: TaskBatch, anchor: Weights, previous: Weights) -> Tensor | None:
        """Return the weighted contrast of one task's batch, None if no modality is present in it."""
        site = step.site
        batch = item.batch.to(site.settings.device)

        def at(weights: Weights) -> Representations:
            return representations_at(site.model, weights, item.task, batch, site.settings)

        live = at(Weights(step.params, persistent_buffers(site.model)))
        with evaluating(site.model), torch.no_grad():
            near, gone = at(anchor), at(previous)
        contrasts = [self._contrast(live[name], near[name], gone[name], rows) for name, rows in _present(batch)]
        return item.weight * torch.stack(contrasts).mean() if contrasts else None

    def _contrast(self, live: Tensor, near: Tensor, gone: Tensor, rows: Tensor) -> Tensor:
        def similar(other: Tensor) -> Tensor:
            return F.cosine_similarity(live[rows], other[rows], dim=-1)

        return pull_push(similar(near), similar(gone), self.temperature).mean()


def _present(batch: Batch) -> list[tuple[str, Tensor]]:
    return [(name, rows) for name, rows in batch.present.items() if bool(rows.any())]


ALGORITHMS: tuple[type[Algorithm], ...] = (Moon,)
