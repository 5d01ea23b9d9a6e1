"""FedNova: local changes are normalised by the steps behind them, so who trains longer does not count more.

Wang et al. 2020. FedAvg with unequal local steps ends at the optimum of a mixture with weights p_i‖a_i‖₁ in place of
p_i. FedNova divides: d_i = (y_i − x)/‖a_i‖₁ and x ← x + τ_eff Σ p_i d_i with τ_eff = Σ p_i‖a_i‖₁. The entries of a_i
say how much each local gradient counts in y_i − x = −η Σ_k a_ik g_ik:

=======================  =====================================================
local optimizer          ‖a_i‖₁ (τ steps, learning rate η)
=======================  =====================================================
SGD                      τ
SGD, momentum ρ          (τ − ρ(1 − ρ^τ)/(1 − ρ))/(1 − ρ)
SGD, proximal μ          (1 − (1 − ημ)^τ)/(ημ)
both                     the response to a gradient that is always 1
=======================  =====================================================

p_i are the shares of examples, tensor by tensor. Weight decay is part of the local objective, so it changes no a_i: the
solution is that of Σ p_i F_i(x) + (λ/2)‖x‖². So is clipping, without μ: the clipped gradient is the gradient.

Adaptive local optimizers are refused. They divide every gradient by a function of itself, so y_i − x is no sum of
gradients with weights known in advance, and no a_i exists. So are momentum kept across rounds (the change holds
gradients of earlier rounds) and clipping with μ > 0 (the pull is clipped too).
"""

from __future__ import annotations

import torch
from torch import Tensor

from medfed.algorithms.parts import ServerPart
from medfed.core.errors import UpdateRejectedError
from medfed.core.types import Params, Update
from medfed.federated.aggregation import Average, moved
from medfed.federated.local import Trained
from medfed.study import algorithms as settings

STEPS = "effective_steps"


class FedNova(settings.FedNova, ServerPart):
    """x ← x + τ_eff Σ p_i (y_i − x)/‖a_i‖₁."""

    def measured(self, trained: Trained, pull: float | None) -> Params:
        """Send ‖a_i‖₁."""
        client = trained.site.settings
        count = effective_steps(trained.num_steps, client.momentum, client.lr * (pull or 0.0))
        return {STEPS: torch.tensor(count, dtype=torch.float64)}

    def upload_like(self) -> Params:
        """Return one float64 number."""
        return {STEPS: torch.zeros((), dtype=torch.float64)}

    def check_upload(self, update: Update) -> None:
        """Refuse effective steps that no momentum below 1 and no pull can give."""
        count, most = float(update.state[STEPS]), update.num_steps * (update.num_steps + 1) / 2
        if not 0 < count <= most:
            what = f"{STEPS} is {count}; after {update.num_steps} steps above 0 and at most {most} is possible"
            hint = "client and server must run the same study"
            raise UpdateRejectedError(what, where=f"client {update.client!r}", hint=hint)

    def sums(self) -> NormalisedChanges:
        """Return empty sums of d_i and ‖a_i‖₁."""
        return NormalisedChanges()


class NormalisedChanges:
    """τ_eff Σ p_i d_i, d_i = (y_i − x)/‖a_i‖₁, over the clients' changes."""

    def __init__(self) -> None:
        self._directions, self._counts = Average(), Average()

    def add(self, update: Update) -> None:
        """Count an update in."""
        count = update.state[STEPS]
        for name, value in update.delta.items():
            self._directions.add({name: value.to(torch.float64) / count}, update)
        self._counts.add(dict.fromkeys(update.delta, count), update)

    def means(self) -> dict[str, Tensor]:
        """Return τ_eff Σ p_i d_i of every tensor that someone has a say in; float64."""
        effective = self._counts.means()
        return {name: effective[name] * mean for name, mean in self._directions.means().items()}

    def added_to(self, values: Params, eta: float = 1.0) -> dict[str, Tensor]:
        """Return ``values`` plus η τ_eff Σ p_i d_i, in the dtype of ``values``."""
        return moved(values, {name: eta * mean for name, mean in self.means().items()})


def effective_steps(num_steps: int, momentum: float, decay: float) -> float:
    """Return ‖a‖₁ of τ steps of SGD: how far a gradient that is always 1 leads, in units of η.

    ``momentum`` is ρ of the heavy ball, from rest; ``decay`` is ημ < 1, by which the pull shrinks the way each step.
    """
    velocity = way = 0.0
    for _ in range(num_steps):
        velocity = momentum * velocity + 1 - decay * way
        way += velocity
    return way
