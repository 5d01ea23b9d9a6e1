"""Algorithms with private tensors: every client begins with the model's initial values of them and keeps its own.

They are neither broadcast nor uploaded; :meth:`Algorithm.private` says which they are. Not an algorithm by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from medfed.core.types import Broadcast, Params
from medfed.federated.algorithm import Algorithm
from medfed.federated.local import Trained, Upload
from medfed.federated.state import Weights, join


class KeepsTensors(Algorithm, ABC):
    """The client's half of FedPer, FedBN and CreamFL: own tensors lie over those of the broadcast."""

    @abstractmethod
    def private(self, params: Params, buffers: Params) -> frozenset[str]:
        """Return the names of tensors that stay at the clients."""

    def init_client(self, initial: Weights) -> Params:
        """Return the initial values of the private tensors."""
        return self._own(initial)

    def start(self, broadcast: Broadcast, client_state: Params) -> Weights:
        """Return the broadcast with the client's own tensors."""
        return self.deployed(Weights(broadcast.params, broadcast.buffers), client_state)

    def upload(self, trained: Trained, broadcast: Broadcast, client_state: Params) -> Upload:
        """Send what is shared and keep the rest."""
        return Upload(trained.delta, trained.shared_buffers(broadcast), client_state=self._own(trained.weights))

    def deployed(self, weights: Weights, client_state: Params) -> Weights:
        """Return the global model with the client's own tensors."""
        params = {**weights.params, **group(client_state, "params")}
        return Weights(params, {**weights.buffers, **group(client_state, "buffers")})

    def _own(self, weights: Weights) -> dict[str, Tensor]:
        names = self.private(weights.params, weights.buffers)
        params, buffers = ({name: part[name] for name in part if name in names} for part in weights)
        return join({"params": params, "buffers": buffers})


def group(tensors: Params, name: str) -> dict[str, Tensor]:
    """Return the tensors that :func:`medfed.federated.state.join` put under ``name``."""
    start = f"{name}/"
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
