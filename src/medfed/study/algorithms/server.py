"""Steps of the server other than the mean."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from medfed.study.algorithms.base import Composition, Plain, Server, refusal
from medfed.study.algorithms.local import FedProx
from medfed.study.federation import ClientSettings


class FedNova(Server):
    """x ← x + τ_eff Σ p_i (y_i − x)/‖a_i‖₁ (Wang et al. 2020). With equal a_i it is the mean, up to rounding."""

    name: ClassVar[str] = "fednova"
    implementation: ClassVar[str] = "medfed.algorithms.fednova:FedNova"
    # strength of the proximal pull (μ/2)‖y − x‖²; in a combination that is local = { name = "fedprox", mu = … }
    mu: float = Field(default=0.0, ge=0)

    def composition(self) -> Composition:
        """Return FedProx's steps, if there is a pull, and the normalised mean."""
        return Composition(local=FedProx(mu=self.mu) if self.mu else Plain(), server=FedNova())

    def check_parts(self, parts: Composition) -> None:
        """Refuse local steps whose effective steps are unknown."""
        if self.mu:
            hint = f'write local = {{ name = "fedprox", mu = {self.mu} }}'
            raise refusal("the pull is part of the local step", hint)
        if parts.local.pull is None:
            what = f"FedNova knows no effective steps for {parts.local.name}: {parts.local.no_steps}"
            raise refusal(what, "choose local = plain, fedprox or ditto, or another server")

    def check_client(self, settings: ClientSettings, parts: Composition) -> None:
        """Refuse local training for which no a_i is known."""
        mu, what = parts.local.pull or 0.0, ""
        if settings.optimizer != "sgd":
            what, hint = f"optimizer={settings.optimizer!r}: it rescales every gradient by the gradients", "use sgd"
        elif settings.momentum and not settings.reset_optimizer:
            what, hint = "momentum that is kept across rounds", "set client.reset_optimizer = true, or momentum = 0"
        elif mu and (most := settings.max_grad_norm) is not None:
            what, hint = f"mu={mu} with max_grad_norm={most}: the pull is clipped too", "drop one of the two"
        elif not math.isfinite(mu) or mu * settings.lr >= 1:
            what, hint = f"mu={mu} with lr={settings.lr}: a step overshoots the global model", "keep mu·lr below 1"
        if what:
            raise refusal(f"FedNova knows no effective steps for {what}", hint, where="client")


class Adaptive(Server):
    """An optimizer on the server."""

    eta: float = Field(default=1e-2, gt=0)  # the server's learning rate η
    beta_1: float = Field(default=0.9, ge=0, lt=1)  # decay β1 of the first moment


class Reddi(Adaptive):
    """x ← x + η m/(√v + τ) (Reddi et al. 2020, Alg. 2)."""

    tau: float = Field(default=1e-3, gt=0)  # adaptivity τ: changes well below it pass unscaled


class FedAdagrad(Reddi):
    """v ← v + Δ². The paper runs it without momentum."""

    name: ClassVar[str] = "fedadagrad"
    implementation: ClassVar[str] = "medfed.algorithms.adaptive:FedAdagrad"
    beta_1: float = Field(default=0.0, ge=0, lt=1)


class FedAdam(Reddi):
    """v ← β2 v + (1 − β2)Δ²."""

    name: ClassVar[str] = "fedadam"
    implementation: ClassVar[str] = "medfed.algorithms.adaptive:FedAdam"
    beta_2: float = Field(default=0.99, ge=0, lt=1)  # decay β2 of the second moment


class FedYogi(Reddi):
    """v ← v − (1 − β2)Δ² sign(v − Δ²)."""

    name: ClassVar[str] = "fedyogi"
    implementation: ClassVar[str] = "medfed.algorithms.adaptive:FedYogi"
    beta_2: float = Field(default=0.99, ge=0, lt=1)  # 1 − β2 is the share of Δ² by which v moves


class FedAMS(Adaptive):
    """v̂ ← max(v̂, v, ε), x ← x + η m/√v̂ (Wang, Lin and Chen 2022): the paper's option 1, max stabilisation."""

    name: ClassVar[str] = "fedams"
    implementation: ClassVar[str] = "medfed.algorithms.adaptive:FedAMS"
    beta_2: float = Field(default=0.99, ge=0, lt=1)  # decay β2 of the second moment
    epsilon: float = Field(default=1e-3, gt=0)  # least value ε of v̂
