"""MOON: local loss plus a contrast between models (Li et al. 2021, Eq. 3 to 5).

A representation z of the live model is pulled to that of the global model. It is pushed from that of the client's model
after its last round. With sim the cosine, the term is
−log(exp(sim(z, z_glob)/τ) / (exp(sim(z, z_glob)/τ) + exp(sim(z, z_prev)/τ))).
With several modalities the term is the mean over them, with several tasks the mean over tasks (FedKIM Eq. 1).

The live model is in training mode, the other two in eval mode with their own batch-norm statistics. The live model's
statistics come from the task loss alone. A client without a last round has the global model as its previous one. Both
similarities are then equal and the term has no gradient, so its passes are left out.

With private tensors the global model is the one the client starts from: the broadcast with its own tensors.

Deviation: z is the encoder's pooled representation; the paper adds a projection head to the network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medfed.algorithms.parts import ClientRound, Finished, LocalPart, laid_over, picked
from medfed.algorithms.representations import evaluating, pull_push, representations_at
from medfed.core.types import Batch
from medfed.federated.local import LocalStep, TaskBatch, Trained
from medfed.federated.state import Weights, persistent_buffers
from medfed.study import algorithms as settings


class Moon(settings.Moon, LocalPart):
    """Local loss + μ·contrast."""

    def penalty(self, step: LocalStep, here: ClientRound) -> Tensor | None:
        """Return μ times the contrast of the step's batches, or None in a client's first round."""
        if self.mu == 0 or not here.kept:
            return None
        previous = laid_over(here.start, here.kept)
        terms = [self._term(step, item, here.start, previous) for item in step.batches]
        known = [term for term in terms if term is not None]
        return self.mu * torch.stack(known).sum() if known else None

    def finish(self, trained: Trained, here: ClientRound) -> Finished:
        """Keep the local model for the next round, of which the client has the private tensors already."""
        return Finished(picked(trained.weights, {*here.broadcast.params, *here.broadcast.buffers}), {})

    def _term(self, step: LocalStep, item: TaskBatch, anchor: Weights, previous: Weights) -> Tensor | None:
        """Return the weighted contrast of one task's batch, None if no modality is present in it."""
        site = step.site
        batch = item.batch.to(site.settings.device)

        def at(weights: Weights) -> dict[str, Tensor]:
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
