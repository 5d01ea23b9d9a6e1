"""Ditto: beside FedAvg, every client trains a model of its own with a pull to the global one (Li et al. 2021, Alg. 1).

The personal model minimises h_i(v) = F_i(v) + (λ/2)‖v − x‖², x being the broadcast; it has its own batch-norm
statistics and takes as many steps as the local one.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from medfed.algorithms.keeping import group
from medfed.core.types import Broadcast, Params
from medfed.federated.algorithm import Algorithm
from medfed.federated.local import LocalStep, Trained, Upload
from medfed.federated.state import Weights, join


class Ditto(Algorithm):
    """x is FedAvg's for any λ; v_i ← v_i − η(∇F_i(v_i) + λ(v_i − x)) is deployed. With λ = 0 a client learns alone.

    Attributes:
        lam: λ, the strength of the pull.
    """

    name: ClassVar[str] = "ditto"
    lam: float = Field(default=1.0, ge=0)

    def init_client(self, initial: Weights) -> Params:
        """Return the personal model at its start: the model's initial weights."""
        return _kept(initial)

    def personal(self, broadcast: Broadcast, client_state: Params) -> Weights:
        """Return the personal model of the client's last round."""
        return self.deployed(Weights(broadcast.params, broadcast.buffers), client_state)

    def penalty(self, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Tensor | None:
        """Return (λ/2)‖v − x‖² for the personal model, nothing for the local one."""
        if not step.personal or self.lam == 0:
            return None
        squares = [(own - broadcast.params[name]).square().sum() for name, own in step.params.items()]
        return 0.5 * self.lam * torch.stack(squares).sum()

    def upload(self, trained: Trained, broadcast: Broadcast, client_state: Params) -> Upload:
        """Send the local model and keep the personal one."""
        sent = super().upload(trained, broadcast, client_state)
        own = client_state if trained.personal is None else _kept(trained.personal)
        return Upload(sent.delta, sent.buffers, client_state=own)

    def deployed(self, weights: Weights, client_state: Params) -> Weights:
        """Return the personal model."""
        return Weights(group(client_state, "params"), group(client_state, "buffers"))


def _kept(weights: Weights) -> dict[str, Tensor]:
    return join({"params": weights.params, "buffers": weights.buffers})


ALGORITHMS: tuple[type[Algorithm], ...] = (Ditto,)
