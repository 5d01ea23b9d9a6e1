"""The adaptive family: the mean local change is a gradient for an adaptive optimizer on the server.

FedAdagrad, FedAdam, FedYogi: Reddi et al. 2020, Alg. 2. FedAMS: Wang, Lin and Chen 2022, Alg. 1. With Δ the clients'
mean change, all keep m ← β1 m + (1 − β1)Δ, from m = 0, without bias correction, as the papers print it:

===========  ==========================================  ==============================  =============
algorithm    v                                           step of x                       v at first
===========  ==========================================  ==============================  =============
FedAdagrad   v + Δ²                                      η m/(√v + τ)                    τ²
FedAdam      β2 v + (1 − β2)Δ²                           η m/(√v + τ)                    τ²
FedYogi      v − (1 − β2)Δ² sign(v − Δ²)                 η m/(√v + τ)                    τ²
FedAMS       β2 v + (1 − β2)Δ², v̂ ← max(v̂, v, ε)         η m/√v̂                          0
===========  ==========================================  ==============================  =============

The local optimizer is free. Clients weigh by their examples (Reddi et al., section 4), tensor by tensor. The moments of
a tensor that no sampled client has data for stay as they are, and so does the tensor. Normalisation statistics are
averaged: they are no direction to step in.

Deviation: FedAMS prints the plain mean over clients; ours weighs by examples like its siblings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from medfed.algorithms.parts import ServerPart
from medfed.core.types import Params
from medfed.federated.aggregation import Sums, moved
from medfed.federated.gate import delta_dtype
from medfed.federated.state import join, split
from medfed.study import algorithms as settings


class Adaptive(settings.Adaptive, ServerPart, ABC):
    """An optimizer on the server. Its moments are float32, or float64 for float64 parameters; its sums are float64."""

    moments: ClassVar[tuple[str, ...]] = ("m", "v")

    @property
    def floor(self) -> float:
        """The second moment before round 1."""
        return 0.0

    @abstractmethod
    def _second(self, old: Params, delta: Tensor) -> dict[str, Tensor]:
        """Return the second moments of one tensor after the mean change ``delta``; ``old`` are its moments by name."""

    @abstractmethod
    def _scale(self, moments: Params) -> Tensor:
        """Return what the first moment is divided by."""

    def init(self, params: Params) -> Params:
        """Return m = 0, and the second moments at their floor."""

        def filled(value: float) -> dict[str, Tensor]:
            return {name: torch.full_like(x, value, dtype=delta_dtype(x.dtype)) for name, x in params.items()}

        return join({moment: filled(0.0 if moment == "m" else self.floor) for moment in self.moments})

    def step(self, params: Params, changes: Sums, state: Params) -> tuple[Params, Params]:
        """Return x + η m/scale and the new moments, for the tensors that someone trained."""
        kept = split(state, self.moments)
        steps = {}
        for name, delta in changes.means().items():
            old = {moment: kept[moment][name].to(torch.float64) for moment in self.moments}
            new = self._second(old, delta) | {"m": self.beta_1 * old["m"] + (1 - self.beta_1) * delta}
            steps[name] = self.eta * (new["m"] / self._scale(new))
            for moment, value in new.items():
                kept[moment][name] = value.to(kept[moment][name].dtype)
        return moved(params, steps), join(kept)


class Reddi(settings.Reddi, Adaptive, ABC):
    """Alg. 2: x ← x + η m/(√v + τ)."""

    @property
    def floor(self) -> float:
        """τ², the least the paper allows."""
        return self.tau**2

    def _scale(self, moments: Params) -> Tensor:
        return moments["v"].sqrt() + self.tau


class FedAdagrad(settings.FedAdagrad, Reddi):
    """v ← v + Δ²."""

    def _second(self, old: Params, delta: Tensor) -> dict[str, Tensor]:
        return {"v": old["v"] + delta.square()}


class FedAdam(settings.FedAdam, Reddi):
    """v ← β2 v + (1 − β2)Δ²."""

    def _second(self, old: Params, delta: Tensor) -> dict[str, Tensor]:
        return {"v": self.beta_2 * old["v"] + (1 - self.beta_2) * delta.square()}


class FedYogi(settings.FedYogi, Reddi):
    """v ← v − (1 − β2)Δ² sign(v − Δ²)."""

    def _second(self, old: Params, delta: Tensor) -> dict[str, Tensor]:
        square = delta.square()
        return {"v": old["v"] - (1 - self.beta_2) * square * (old["v"] - square).sign()}


class FedAMS(settings.FedAMS, Adaptive):
    """v̂ ← max(v̂, v, ε), x ← x + η m/√v̂."""

    moments: ClassVar[tuple[str, ...]] = ("m", "v", "v_hat")

    def _second(self, old: Params, delta: Tensor) -> dict[str, Tensor]:
        v = self.beta_2 * old["v"] + (1 - self.beta_2) * delta.square()
        return {"v": v, "v_hat": torch.maximum(old["v_hat"], v).clamp(min=self.epsilon)}

    def _scale(self, moments: Params) -> Tensor:
        return moments["v_hat"].sqrt()
