"""A federated algorithm: settings under their paper's names, and pure methods whose defaults are FedAvg.

McMahan et al. 2017, Alg. 1. An algorithm sees parameters, losses and gradients; never a task's metrics, a dataset or a
transport. The registered ones are combinations of parts (:mod:`medfed.algorithms.composed`); a class of your own may
override these methods instead. Below, x is the global model and y the local one.

All state is plain named tensors, so it can be checkpointed and sent. Methods change none of their arguments.

A transformation of the change of the weights has one place each, whatever the algorithm:

=====================================  =============================================================================
clipping of a client's change          :meth:`medfed.federated.exchange.Trainer.update`, before ``compressed``
encoding of what travels               :func:`medfed.federated.compression.compressed` and ``restored``
robust sums over clients               :class:`medfed.federated.aggregation.Sums`, made by ``ServerPart.sums``
noise on the mean change               ``Composed.aggregate``, between the sums and the server's step
=====================================  =============================================================================
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from medfed.core.types import Broadcast, Params, Update
from medfed.federated.aggregation import Average
from medfed.federated.local import LocalStep, Trained, Upload
from medfed.federated.state import FederatedState, Weights
from medfed.study.algorithms import AlgorithmSettings
from medfed.tasks.base import TaskSet

__all__ = ["Aggregate", "Algorithm", "Federation"]


@dataclass(frozen=True)
class Federation:
    """The server's knowledge of the federation."""

    registered: Mapping[str, int]  # client id → examples it registered with; nothing larger is believed
    seed: int  # the run's seed
    # the server's instance of the model, for algorithms that train or evaluate on the server
    model: nn.Module | None = None
    public: Mapping[str, TaskSet] = field(default_factory=dict)  # the server's public examples by task


class Aggregate(NamedTuple):
    """The server's new model and state."""

    params: Params
    buffers: Params
    server_state: Params


class Algorithm(AlgorithmSettings, ABC):
    """An algorithm with its hooks; a frozen settings object, so a class of your own stands in a study as it is."""

    @property
    def corrects(self) -> bool:
        """Whether :meth:`correct` has to be called."""
        return type(self).correct is not Algorithm.correct

    @property
    def sends_state(self) -> bool:
        """Whether uploads hold tensors of the algorithm next to the change of the weights."""
        return type(self).upload_like is not Algorithm.upload_like

    def build(self) -> Algorithm:
        """Return this algorithm."""
        return self

    def private(self, params: Params, buffers: Params) -> frozenset[str]:
        """Return the names of tensors that stay at the clients: neither broadcast nor uploaded.

        A client begins with the model's initial values of them, which :meth:`init_client` is given.
        """
        return frozenset()

    def init_server(self, params: Params) -> Params:
        """Return the server's state before round 1; ``params`` are those that travel."""
        return {}

    def init_client(self, initial: Weights) -> Params:
        """Return a client's state before its first round; ``initial`` are the model's initial weights."""
        return {}

    def broadcast(self, state: FederatedState, base: str) -> Broadcast:
        """Return what every sampled client is sent in round ``state.round + 1``."""
        return Broadcast(state.round + 1, base, *self.shared(state.weights))

    def shared(self, weights: Weights) -> Weights:
        """Return ``weights`` without the tensors that stay at the clients."""
        private = self.private(weights.params, weights.buffers)
        params, buffers = ({name: value for name, value in part.items() if name not in private} for part in weights)
        return Weights(params, buffers)

    def start(self, broadcast: Broadcast, client_state: Params) -> Weights:
        """Return the model local training starts from."""
        return Weights(broadcast.params, broadcast.buffers)

    def penalty(self, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Tensor | None:
        """Return a term added to the step's loss, with its graph, or None."""
        return None

    def correct(self, gradients: Params, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Params | None:
        """Return the gradients the optimizer gets instead of ``gradients`` (before clipping), or None."""
        return None

    def personal(self, broadcast: Broadcast, client_state: Params) -> Weights | None:
        """Return the start of a second model that the client trains for itself, or None."""
        return None

    def upload(self, trained: Trained, broadcast: Broadcast, client_state: Params) -> Upload:
        """Return what leaves the client and what it keeps."""
        return Upload(trained.delta, trained.shared_buffers(broadcast), client_state=client_state)

    def upload_like(self, state: FederatedState, federation: Federation) -> Params:
        """Return tensors with the names, shapes and dtypes of an upload's ``state``."""
        return {}

    def check_upload(self, update: Update) -> None:
        """Raise UpdateRejectedError where an upload's own tensors, of the right form, say what cannot be."""

    def aggregate(self, state: FederatedState, updates: Iterator[Update], federation: Federation) -> Aggregate:
        """Consume the accepted updates, sorted by client, and return the new global model and server state.

        x ← x + Σ w_i (y_i − x) / Σ w_i, tensor by tensor, where w_i are the examples whose loss reached the tensor.
        """
        deltas, buffers = Average(), Average()
        for update in updates:
            deltas.add(update.delta, update)
            buffers.add(update.buffers, update)
            del update  # before the next one comes: memory holds one
        return Aggregate(deltas.added_to(state.params), buffers.replacing(state.buffers), state.server_state)

    def deployed(self, weights: Weights, client_state: Params) -> Weights:
        """Return the model that predicts at a client, given the global ``weights``."""
        return weights
