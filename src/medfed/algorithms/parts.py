"""The hooks of the three parts of an algorithm, with FedAvg's as defaults.

=============  =====================================================================================================
part           what it decides
=============  =====================================================================================================
what travels   :meth:`SharingPart.private`: tensors that never leave a client, which lays them over the broadcast
local step     :meth:`LocalPart.penalty` or :meth:`LocalPart.correct`; a second model (:meth:`LocalPart.personal`);
               what is sent beside the change and what is kept (:meth:`LocalPart.finish`); the model that predicts
server's step  :meth:`ServerPart.sums` over the clients' changes, and :meth:`ServerPart.step` along them
=============  =====================================================================================================

A part sees its own tensors only, under the names it gave them. Hooks change none of their arguments.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from medfed.core.types import Broadcast, Params, Update
from medfed.federated.aggregation import Average, Changes, Sums
from medfed.federated.algorithm import Federation
from medfed.federated.local import LocalStep, Trained
from medfed.federated.state import Weights, group, join
from medfed.study import algorithms as settings


class SharingPart(settings.Sharing):
    """The tensors that travel; by default all."""

    def private(self, params: Params, buffers: Params) -> frozenset[str]:
        """Return the names of tensors that stay at the clients: neither broadcast nor uploaded."""
        return frozenset()

    def kept(self, weights: Weights) -> dict[str, Tensor]:
        """Return the private tensors of ``weights``, as a client keeps them."""
        return picked(weights, self.private(*weights))


@dataclass(frozen=True)
class ClientRound:
    """The inputs of a local step in a round."""

    broadcast: Broadcast  # the server's message; of `state` the part's own tensors
    start: Weights  # the model the client starts from: the broadcast with its private tensors
    kept: Params  # what the part kept at this client


class Finished(NamedTuple):
    """The tensors that a local step adds after training."""

    kept: Params  # at the client until the next round
    sent: Params  # to the server, next to the change of the weights


class Renewal:
    """The server's half of a local step, one update at a time; by default the server keeps nothing for it."""

    def add(self, update: Update) -> None:
        """Count an update in; its ``state`` holds the part's own tensors."""

    def result(self) -> Params:
        """Return the part's tensors at the server after the round."""
        return {}


class LocalPart(settings.Local):
    """The local step; by default the client's gradients as they are."""

    def init_server(self, params: Params) -> Params:
        """Return the part's tensors at the server before round 1; ``params`` are those that travel."""
        return {}

    def init_client(self, initial: Weights) -> Params:
        """Return the part's tensors at a client before its first round; ``initial`` weights that travel."""
        return {}

    def broadcast(self, state: Params) -> Params:
        """Return what every sampled client is sent of the part's tensors at the server."""
        return {}

    def penalty(self, step: LocalStep, here: ClientRound) -> Tensor | None:
        """Return a term added to the step's loss, with its graph, or None."""
        return None

    def correct(self, gradients: Params, step: LocalStep, here: ClientRound) -> Params | None:
        """Return the gradients the optimizer gets instead of ``gradients`` (before clipping), or None."""
        return None

    def personal(self, here: ClientRound) -> Weights | None:
        """Return the start of a second model that the client trains for itself, or None."""
        return None

    def finish(self, trained: Trained, here: ClientRound) -> Finished:
        """Return what the part keeps and sends after training."""
        return Finished(here.kept, {})

    def upload_like(self, state: Params) -> Params:
        """Return tensors with the names, shapes and dtypes of what :meth:`finish` sends."""
        return {}

    def renewal(self, state: Params, federation: Federation) -> Renewal:
        """Return what renews the part's tensors at the server, ``state``, from a round's updates."""
        return Renewal()

    def deployed(self, weights: Weights, kept: Params) -> Weights:
        """Return the model that predicts at a client; ``weights`` are the global ones with its private tensors."""
        return weights


class ServerPart(settings.Server):
    """The server's step; by default along the mean change, weighted by examples."""

    def init(self, params: Params) -> Params:
        """Return the part's tensors before round 1; ``params`` are those that travel."""
        return {}

    def measured(self, trained: Trained, pull: float | None) -> Params:
        """Return what a client sends for this step; ``pull`` is that of its local step (``Local.pull``)."""
        return {}

    def upload_like(self) -> Params:
        """Return tensors with the names, shapes and dtypes of what :meth:`measured` sends."""
        return {}

    def check_upload(self, update: Update) -> None:
        """Raise UpdateRejectedError where the part's own tensors, of the right form, say what cannot be."""

    def average(self) -> Average:
        """Return an empty mean with the weights this step gives the clients."""
        return Average()

    def sums(self) -> Sums:
        """Return empty sums over the clients' changes."""
        return Changes(self.average())

    def step(self, params: Params, changes: Sums, state: Params) -> tuple[Params, Params]:
        """Return the new global parameters and the part's new tensors; a tensor nobody trained stays as it is."""
        return changes.added_to(params), state


def picked(weights: Weights, names: Collection[str]) -> dict[str, Tensor]:
    """Return those of ``weights`` that ``names`` holds, as a client keeps them."""
    params, buffers = ({name: part[name] for name in part if name in names} for part in weights)
    return join({"params": params, "buffers": buffers})


def laid_over(weights: Weights, kept: Params) -> Weights:
    """Return ``weights`` with the tensors a client kept, as :func:`picked` returned them, in place of theirs."""
    params = {**weights.params, **group(kept, "params")}
    return Weights(params, {**weights.buffers, **group(kept, "buffers")})


class All(settings.All, SharingPart):
    """Every tensor travels."""


class Plain(settings.Plain, LocalPart):
    """The client's gradients."""


class Mean(settings.Mean, ServerPart):
    """x ← x + η·mean(y_i − x)."""

    def average(self) -> Average:
        """Return an empty mean with the weights this step gives the clients."""
        return Average(self.weighting)

    def step(self, params: Params, changes: Sums, state: Params) -> tuple[Params, Params]:
        """Return x + η·mean(y_i − x)."""
        return changes.added_to(params, self.eta), state
