"""FedProx: FedAvg with a pull towards the global model in the local loss (Li et al. 2020, Eq. 2).

FedKIM prints the factor λ/2 with λ = 1e-4; λ is ``mu`` here.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from medfed.core.types import Broadcast, Params
from medfed.federated.algorithm import Algorithm
from medfed.federated.local import LocalStep


class FedProx(Algorithm):
    """Local loss + (μ/2)‖y − x‖². With μ = 0 it is FedAvg, bit for bit.

    Attributes:
        mu: strength of the pull.
    """

    name: ClassVar[str] = "fedprox"
    mu: float = Field(default=1e-4, ge=0)

    def penalty(self, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Tensor | None:
        """Return (μ/2)‖y − x‖² over the parameters that train."""
        return pull(self.mu, step, broadcast)


def pull(mu: float, step: LocalStep, broadcast: Broadcast) -> Tensor | None:
    """Return (μ/2)‖y − x‖² over the parameters that train, or None where μ is 0."""
    if mu == 0:
        return None
    squares = [(local - broadcast.params[name]).square().sum() for name, local in step.params.items()]
    return 0.5 * mu * torch.stack(squares).sum()


ALGORITHMS: tuple[type[Algorithm], ...] = (FedProx,)
