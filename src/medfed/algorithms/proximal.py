"""A pull towards the global model x: FedProx in the local loss, Ditto for a second, personal model.

FedProx (Li et al. 2020, Eq. 2) adds (μ/2)‖y − x‖² to the local loss. FedKIM prints the factor λ/2 with λ = 1e-4; λ is
``mu`` here. Private tensors are not pulled: they have no global value.

Ditto (Li et al. 2021, Alg. 1) trains next to the shared model a personal one, which minimises
h_i(v) = F_i(v) + (λ/2)‖v − x‖², x being the broadcast. It has its own batch-norm statistics and takes as many steps as
the local one. Any server's step may find x: the paper leaves it open.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medfed.algorithms.parts import ClientRound, Finished, LocalPart
from medfed.core.types import Params
from medfed.federated.local import LocalStep, Trained
from medfed.federated.state import Weights, group, join
from medfed.study import algorithms as settings


class FedProx(settings.FedProx, LocalPart):
    """Local loss + (μ/2)‖y − x‖²."""

    def penalty(self, step: LocalStep, here: ClientRound) -> Tensor | None:
        """Return (μ/2)‖y − x‖² over the parameters that train and travel, or None where μ is 0."""
        return _pull(self.mu, step, here)


class Ditto(settings.Ditto, LocalPart):
    """x does not see λ; v_i ← v_i − η(∇F_i(v_i) + λ(v_i − x)) is deployed."""

    def init_client(self, initial: Weights) -> Params:
        """Return the personal model at its start: the model's initial weights."""
        return _kept(initial)

    def personal(self, here: ClientRound) -> Weights:
        """Return the personal model of the client's last round."""
        return self.deployed(here.start, here.kept)

    def penalty(self, step: LocalStep, here: ClientRound) -> Tensor | None:
        """Return (λ/2)‖v − x‖² for the personal model, nothing for the local one."""
        return _pull(self.lam, step, here) if step.personal else None

    def finish(self, trained: Trained, here: ClientRound) -> Finished:
        """Keep the personal model."""
        return Finished(here.kept if trained.personal is None else _kept(trained.personal), {})

    def deployed(self, weights: Weights, kept: Params) -> Weights:
        """Return the personal model."""
        return Weights(group(kept, "params"), group(kept, "buffers"))


def _kept(weights: Weights) -> dict[str, Tensor]:
    return join({"params": weights.params, "buffers": weights.buffers})


def _pull(strength: float, step: LocalStep, here: ClientRound) -> Tensor | None:
    """Return (strength/2)‖y − x‖² over the parameters that train and travel, or None where it is 0."""
    world = here.broadcast.params
    squares = [(local - world[name]).square().sum() for name, local in step.params.items() if name in world]
    return 0.5 * strength * torch.stack(squares).sum() if strength and squares else None
