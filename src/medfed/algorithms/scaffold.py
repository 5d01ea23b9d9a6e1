"""SCAFFOLD: control variates cancel the drift of local training (Karimireddy et al. 2020, Alg. 1).

Every client keeps c_i, the gradient it expects of its own data; the server keeps their mean c. A local step uses
g − c_i + c, which points where all clients together want to go. With η, τ a client's learning rate and steps:

=========  ==============================================================  =====================================
option     c_i⁺                                                            asks of the client
=========  ==============================================================  =====================================
``"I"``    gradient of its whole loss at x: one more pass over its data    nothing
``"II"``   c_i − c + (x − y_i)/(τη): no more work, the paper's own choice  plain SGD, else x − y_i is no gradient
=========  ==============================================================  =====================================

x ← x + η_g·mean(y_i − x) and c ← c + (|S|/N)·mean(c_i⁺ − c_i) = c + Σ(c_i⁺ − c_i)/N.

The paper leaves clients that lack a modality or a task open. For a tensor, S and N hold the clients with data for its
component. So c stays the mean of their c_i exactly, also when clients are sampled. A client's first update says what
data it has. Until then it counts with the c_i = 0 it starts from; c is rescaled if it turns out to have none. A client
whose update is lost after training has moved its c_i on all the same; c misses that change until the run ends.

With ``weighting="clients"``, the paper's, the objective is the plain mean of the clients' losses. With
``"examples"`` both x and c weigh clients by examples, as FedAvg does; this and ``control = 0`` is FedAvg, bit for bit.

Private tensors (FedPer, FedBN) take plain steps and have no control variate. Let ∇_x and ∇_v be the gradients by shared
and private tensors. A point with Σ ∇_x F_i = 0 and every ∇_v F_i = 0 is at rest, with c_i = ∇_x F_i and c = 0. Option I
takes the gradient at x with the client's private tensors as they are after the round.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from medfed.algorithms.parts import ClientRound, Finished, LocalPart, Renewal
from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Params, Update, component
from medfed.federated.aggregation import Average, weight
from medfed.federated.algorithm import Federation
from medfed.federated.gate import delta_dtype
from medfed.federated.local import LocalStep, Trained
from medfed.federated.state import Weights, join, split
from medfed.study import algorithms as settings

GROUPS = ("control", "weight")


class Scaffold(settings.Scaffold, LocalPart):
    """g ← g − c_i + c, with c_i by option I or II."""

    def init_server(self, params: Params) -> Params:
        """Return c = 0."""
        return join({"control": _zeros(params)})

    def init_client(self, initial: Weights) -> Params:
        """Return c_i = 0."""
        return _zeros(initial.params)

    def broadcast(self, state: Params) -> Params:
        """Send c."""
        return split(state, GROUPS)["control"]

    def correct(self, gradients: Params, step: LocalStep, here: ClientRound) -> Params | None:
        """Return g − c_i + c; the gradient itself for private tensors."""
        if self.control == 0:
            return None
        common, kept = here.broadcast.state, here.kept
        return {
            name: value + self.control * (common[name] - kept[name]).to(value.dtype) if name in kept else value
            for name, value in gradients.items()
        }

    def finish(self, trained: Trained, here: ClientRound) -> Finished:
        """Keep c_i⁺ and send c_i⁺ − c_i. A tensor the client has no data for keeps its c_i."""
        new = self._gradient(trained, here) if self.option == "I" else _read_off(trained, here)
        kept = {
            name: new[name].to(before.dtype) if trained.examples[component(name)] else before
            for name, before in here.kept.items()
        }
        return Finished(kept, {name: kept[name] - before for name, before in here.kept.items()})

    def upload_like(self, state: Params) -> Params:
        """Return tensors like c."""
        return split(state, GROUPS)["control"]

    def renewal(self, state: Params, federation: Federation) -> Controls:
        """Return what renews c."""
        return Controls(state, federation, self.weighting)

    def _gradient(self, trained: Trained, here: ClientRound) -> dict[str, Tensor]:
        """Option I; dropout and batch normalisation work as in training, from a seed of their own."""
        with torch_seeded(trained.site.seed, trained.site.client, here.broadcast.round, "control"):
            gradient = trained.gradient(here.broadcast.params)
        return {name: value.cpu() for name, value in gradient.items()}


class Controls(Renewal):
    """c, renewed by the clients' c_i⁺ − c_i; ``state`` holds c and the known weights of the clients, by component."""

    def __init__(self, state: Params, federation: Federation, weighting: settings.Weighting) -> None:
        groups = split(state, GROUPS)
        self._common, self._before, self._after = groups["control"], groups["weight"], dict(groups["weight"])
        self._registered, self._weighting, self._changes = federation.registered, weighting, Average(weighting)
        self._parts = sorted({component(name) for name in self._common})

    def add(self, update: Update) -> None:
        """Count c_i⁺ − c_i in, and what the client weighs."""
        self._changes.add(update.state, update)
        shares = [weight(update, part, self._weighting) for part in self._parts]
        self._after[update.client] = torch.tensor(shares, dtype=torch.float64)

    def result(self) -> dict[str, Tensor]:
        """Return the new c, and the weights."""
        before, after = self._total(self._before), self._total(self._after)
        common = _mean(self._common, self._changes.sums(), before, after)
        return join({"control": common, "weight": self._after})

    def _total(self, known: Params) -> dict[str, float]:
        """Return the weight of all registered clients by component; who never answered counts in full."""
        size = torch.zeros(len(self._parts), dtype=torch.float64)
        for client, examples in self._registered.items():
            assumed = examples if self._weighting == "examples" else 1
            size += known.get(client, torch.full_like(size, assumed))
        return dict(zip(self._parts, size.tolist(), strict=True))


def _zeros(params: Params) -> dict[str, Tensor]:
    return {name: torch.zeros_like(value, dtype=delta_dtype(value.dtype)) for name, value in params.items()}


def _read_off(trained: Trained, here: ClientRound) -> dict[str, Tensor]:
    """Option II: c_i − c + (x − y_i)/(τη)."""
    scale, common = trained.num_steps * trained.site.settings.lr, here.broadcast.state
    return {name: before - common[name] - trained.delta[name] / scale for name, before in here.kept.items()}


def _mean(
    common: Params, changes: Params, before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, Tensor]:
    """Return (c·W + Σ w_i(c_i⁺ − c_i))/W⁺: with a constant weight W = W⁺ = N the paper's rule."""
    result = dict(common)
    for name, value in common.items():
        part = component(name)
        if after[part]:
            total = value.to(torch.float64) * before[part] + changes.get(name, 0.0)
            result[name] = (total / after[part]).to(value.dtype)
    return result
