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

Adaptive local optimizers are refused: they divide every gradient by a function of itself, so y_i − x is no weighted sum
of gradients with weights known beforehand, and no a_i exists. So are momentum kept across rounds (the change holds
gradients of earlier rounds) and clipping with μ > 0 (the pull is clipped too).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from medfed.algorithms.fedprox import pull
from medfed.core.errors import StudyError, UpdateRejectedError
from medfed.core.types import Broadcast, Params, Update
from medfed.federated.aggregation import Average, moved
from medfed.federated.algorithm import Aggregate, Algorithm, Federation
from medfed.federated.local import LocalStep, Trained, Upload
from medfed.federated.state import FederatedState
from medfed.study.federation import ClientSettings

STEPS = "effective_steps"


class FedNova(Algorithm):
    """x ← x + τ_eff Σ p_i (y_i − x)/‖a_i‖₁. With equal a_i it is FedAvg (or FedProx), up to rounding.

    Attributes:
        mu: strength of the proximal pull (μ/2)‖y − x‖² in the local loss; 0 for none.
    """

    name: ClassVar[str] = "fednova"
    mu: float = Field(default=0.0, ge=0)

    def check(self, settings: ClientSettings) -> None:
        """Refuse local training for which no a_i is known.

        Raises:
            StudyError: naming the setting.
        """
        reason = _unknown_steps(settings, self.mu)
        if reason:
            what, hint = reason
            raise StudyError(f"FedNova knows no effective steps for {what}", where="client", hint=hint)

    def penalty(self, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Tensor | None:
        """Return (μ/2)‖y − x‖² over the parameters that train."""
        return pull(self.mu, step, broadcast)

    def upload(self, trained: Trained, broadcast: Broadcast, client_state: Params) -> Upload:
        """Send y_i − x and ‖a_i‖₁."""
        settings = trained.site.settings
        count = effective_steps(trained.num_steps, settings.momentum, settings.lr * self.mu)
        state = {STEPS: torch.tensor(count, dtype=torch.float64)}
        return Upload(trained.delta, trained.shared_buffers(broadcast), state)

    def upload_like(self, state: FederatedState, federation: Federation) -> Params:
        """Return one float64 number."""
        return {STEPS: torch.zeros((), dtype=torch.float64)}

    def check_upload(self, update: Update) -> None:
        """Refuse effective steps that no momentum below 1 and no pull can give.

        Raises:
            UpdateRejectedError: naming the client.
        """
        count, most = float(update.state[STEPS]), update.num_steps * (update.num_steps + 1) / 2
        if not 0 < count <= most:
            raise UpdateRejectedError(
                f"{STEPS} is {count}; after {update.num_steps} steps above 0 and at most {most} is possible",
                where=f"client {update.client!r}",
                hint="client and server must run the same study",
            )

    def aggregate(self, state: FederatedState, updates: Iterator[Update], federation: Federation) -> Aggregate:
        """Return x + τ_eff Σ p_i d_i; buffers as in FedAvg."""
        directions, counts, buffers = Average(), Average(), Average()
        for update in updates:
            count = update.state[STEPS]
            for name, value in update.delta.items():
                directions.add({name: value.to(torch.float64) / count}, update)
            counts.add(dict.fromkeys(update.delta, count), update)
            buffers.add(update.buffers, update)
            del update  # before the next one comes: memory holds one
        effective = counts.means()
        steps = {name: effective[name] * mean for name, mean in directions.means().items()}
        return Aggregate(moved(state.params, steps), buffers.replacing(state.buffers), state.server_state)


def effective_steps(num_steps: int, momentum: float, decay: float) -> float:
    """Return ‖a‖₁ of a round of SGD: how far a gradient that is always 1 leads, in units of η.

    Args:
        num_steps: τ.
        momentum: ρ of the heavy ball, from rest.
        decay: ημ, by which the pull shrinks the way made so far at every step; below 1.
    """
    velocity = way = 0.0
    for _ in range(num_steps):
        velocity = momentum * velocity + 1 - decay * way
        way += velocity
    return way


def _unknown_steps(settings: ClientSettings, mu: float) -> tuple[str, str] | None:
    """Return what stands in the way of an a_i, and the next step."""
    if settings.optimizer != "sgd":
        return f"optimizer={settings.optimizer!r}: it rescales every gradient by the gradients", "use sgd"
    if settings.momentum and not settings.reset_optimizer:
        return "momentum that is kept across rounds", "set client.reset_optimizer = true, or momentum = 0"
    if mu and settings.max_grad_norm is not None:
        return f"mu={mu} with max_grad_norm={settings.max_grad_norm}: the pull is clipped too", "drop one of the two"
    if not math.isfinite(mu) or mu * settings.lr >= 1:
        return f"mu={mu} with lr={settings.lr}: a step overshoots the global model", "keep mu·lr below 1"
    return None


ALGORITHMS: tuple[type[Algorithm], ...] = (FedNova,)
