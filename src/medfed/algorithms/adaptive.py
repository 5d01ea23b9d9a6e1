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
from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from medfed.core.types import Params, Update
from medfed.federated.aggregation import moved, totals
from medfed.federated.algorithm import Aggregate, Algorithm, Federation
from medfed.federated.gate import delta_dtype
from medfed.federated.state import FederatedState, join, split


class Adaptive(Algorithm, ABC):
    """An optimizer on the server. Its moments are float32, or float64 for float64 parameters; its sums are float64.

    Attributes:
        eta: the server's learning rate η.
        beta_1: decay β1 of the first moment.
    """

    moments: ClassVar[tuple[str, ...]] = ("m", "v")
    eta: float = Field(default=1e-2, gt=0)
    beta_1: float = Field(default=0.9, ge=0, lt=1)

    @property
    @abstractmethod
    def floor(self) -> float:
        """The second moment before round 1."""

    @abstractmethod
    def second(self, old: Params, delta: Tensor) -> dict[str, Tensor]:
        """Return the second moments of one tensor after the mean change ``delta``; ``old`` are its moments by name."""

    @abstractmethod
    def scale(self, moments: Params) -> Tensor:
        """Return what the first moment is divided by."""

    def init_server(self, params: Params) -> Params:
        """Return m = 0, and the second moments at their floor."""

        def filled(value: float) -> dict[str, Tensor]:
            return {name: torch.full_like(x, value, dtype=delta_dtype(x.dtype)) for name, x in params.items()}

        return join({moment: filled(0.0 if moment == "m" else self.floor) for moment in self.moments})

    def aggregate(self, state: FederatedState, updates: Iterator[Update], federation: Federation) -> Aggregate:
        """Return x + η m/scale and the new moments, for the tensors that someone trained."""
        deltas, buffers = totals(updates)
        kept = split(state.server_state, self.moments)
        steps = {}
        for name, delta in deltas.means().items():
            old = {moment: kept[moment][name].to(torch.float64) for moment in self.moments}
            new = self.second(old, delta) | {"m": self.beta_1 * old["m"] + (1 - self.beta_1) * delta}
            steps[name] = self.eta * (new["m"] / self.scale(new))
            for moment, value in new.items():
                kept[moment][name] = value.to(kept[moment][name].dtype)
        return Aggregate(moved(state.params, steps), buffers.replacing(state.buffers), join(kept))


class Reddi(Adaptive, ABC):
    """Alg. 2: x ← x + η m/(√v + τ).

    Attributes:
        tau: adaptivity τ: changes well below it pass unscaled.
    """

    tau: float = Field(default=1e-3, gt=0)

    @property
    def floor(self) -> float:
        """τ², the least the paper allows."""
        return self.tau**2

    def scale(self, moments: Params) -> Tensor:
        """Return √v + τ."""
        return moments["v"].sqrt() + self.tau


class FedAdagrad(Reddi):
    """v ← v + Δ². The paper runs it without momentum."""

    name: ClassVar[str] = "fedadagrad"
    beta_1: float = Field(default=0.0, ge=0, lt=1)

    def second(self, old: Params, delta: Tensor) -> dict[str, Tensor]:
        """Return v."""
        return {"v": old["v"] + delta.square()}


class FedAdam(Reddi):
    """v ← β2 v + (1 − β2)Δ².

    Attributes:
        beta_2: decay β2 of the second moment.
    """

    name: ClassVar[str] = "fedadam"
    beta_2: float = Field(default=0.99, ge=0, lt=1)

    def second(self, old: Params, delta: Tensor) -> dict[str, Tensor]:
        """Return v."""
        return {"v": self.beta_2 * old["v"] + (1 - self.beta_2) * delta.square()}


class FedYogi(Reddi):
    """v ← v − (1 − β2)Δ² sign(v − Δ²).

    Attributes:
        beta_2: 1 − β2 is the share of Δ² by which v moves.
    """

    name: ClassVar[str] = "fedyogi"
    beta_2: float = Field(default=0.99, ge=0, lt=1)

    def second(self, old: Params, delta: Tensor) -> dict[str, Tensor]:
        """Return v."""
        square = delta.square()
        return {"v": old["v"] - (1 - self.beta_2) * square * (old["v"] - square).sign()}


class FedAMS(Adaptive):
    """v̂ ← max(v̂, v, ε), x ← x + η m/√v̂: the paper's option 1, max stabilisation.

    Attributes:
        beta_2: decay β2 of the second moment.
        epsilon: least value ε of v̂.
    """

    name: ClassVar[str] = "fedams"
    moments: ClassVar[tuple[str, ...]] = ("m", "v", "v_hat")
    beta_2: float = Field(default=0.99, ge=0, lt=1)
    epsilon: float = Field(default=1e-3, gt=0)

    @property
    def floor(self) -> float:
        """0, as the paper starts."""
        return 0.0

    def second(self, old: Params, delta: Tensor) -> dict[str, Tensor]:
        """Return v and v̂."""
        v = self.beta_2 * old["v"] + (1 - self.beta_2) * delta.square()
        return {"v": v, "v_hat": torch.maximum(old["v_hat"], v).clamp(min=self.epsilon)}

    def scale(self, moments: Params) -> Tensor:
        """Return √v̂."""
        return moments["v_hat"].sqrt()


ALGORITHMS: tuple[type[Algorithm], ...] = (FedAdagrad, FedAdam, FedYogi, FedAMS)
