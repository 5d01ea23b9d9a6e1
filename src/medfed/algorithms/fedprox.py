"""FedProx: FedAvg with a pull towards the global model in the local loss (Li et al. 2020, Eq. 2).

FedKIM prints the factor λ/2 with λ = 1e-4; λ is ``mu`` here. Private tensors are not pulled: they have no global value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medfed.algorithms.parts import ClientRound, LocalPart
from medfed.federated.local import LocalStep
from medfed.study import algorithms as settings


class FedProx(settings.FedProx, LocalPart):
    """Local loss + (μ/2)‖y − x‖²."""

    def penalty(self, step: LocalStep, here: ClientRound) -> Tensor | None:
        """Return (μ/2)‖y − x‖² over the parameters that train and travel, or None where μ is 0."""
        if self.mu == 0:
            return None
        world = here.broadcast.params
        squares = [(local - world[name]).square().sum() for name, local in step.params.items() if name in world]
        return 0.5 * self.mu * torch.stack(squares).sum() if squares else None
