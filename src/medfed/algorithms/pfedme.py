"""pFedMe: clients minimise the Moreau envelope of their loss (T. Dinh et al. 2020, Alg. 1).

f_i(w) = min_θ F_i(θ) + (λ/2)‖θ − w‖² has the gradient λ(w − θ(w)), where θ(w) is the personal model. Every local step
approaches θ by K gradient steps from w on the step's mini-batch; the local optimizer then takes w along λ(w − θ), which
with plain SGD is the paper's w ← w − ηλ(w − θ). Other local optimizers minimise the same envelope.

Deviation: after the last step the deployed θ is approached once more, by K steps on all of the client's examples, where
the paper keeps that of the last mini-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from medfed.algorithms.keeping import group
from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Broadcast, Params, Update
from medfed.federated.aggregation import Weighting, moved, totals
from medfed.federated.algorithm import Aggregate, Algorithm, Federation
from medfed.federated.local import LocalStep, Trained, Upload
from medfed.federated.state import FederatedState, Weights, join


class PFedMe(Algorithm):
    """θ_i ≈ argmin F_i(θ) + (λ/2)‖θ − w_i‖² is deployed; x ← (1 − β)x + β·mean of w_i over the round's clients.

    With K = 1 and λ·inner_lr = 1 the gradient λ(w − θ) is that of F_i; with β = 1 and weights by examples that is
    FedAvg up to rounding. For other K no setting is.

    Attributes:
        lam: λ.
        K: gradient steps towards θ.
        inner_lr: their learning rate ("personal learning rate").
        beta: β, the server's step towards the mean; the paper takes 1 or more.
        weighting: what a client counts in the mean; in the paper all count alike.
    """

    name: ClassVar[str] = "pfedme"
    lam: float = Field(default=15.0, gt=0)
    K: int = Field(default=5, gt=0)
    inner_lr: float = Field(default=0.01, gt=0)
    beta: float = Field(default=1.0, gt=0)
    weighting: Weighting = "clients"

    def correct(self, gradients: Params, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Params:
        """Return λ(w − θ); ``gradients``, taken at w, serve as the first of the K."""
        here = {name: value.detach() for name, value in step.params.items()}
        theta = self._theta(here, step.gradient, gradients)
        return {name: self.lam * (value - theta[name]) for name, value in here.items()}

    def upload(self, trained: Trained, broadcast: Broadcast, client_state: Params) -> Upload:
        """Send w_i and keep θ_i, with the local statistics."""
        sent = super().upload(trained, broadcast, client_state)
        site = trained.site
        here = {name: value.to(site.settings.device) for name, value in trained.weights.params.items()}
        with torch_seeded(site.seed, site.client, broadcast.round, "theta"):
            theta = self._theta(here, trained.gradient, trained.gradient(here))
        own = {name: value.cpu() for name, value in theta.items()}
        return replace(sent, client_state=join({"params": own, "buffers": trained.weights.buffers}))

    def aggregate(self, state: FederatedState, updates: Iterator[Update], federation: Federation) -> Aggregate:
        """Return (1 − β)x + β·mean of w_i."""
        deltas, buffers = totals(updates, self.weighting)
        steps = {name: self.beta * mean for name, mean in deltas.means().items()}
        return Aggregate(moved(state.params, steps), buffers.replacing(state.buffers), state.server_state)

    def deployed(self, weights: Weights, client_state: Params) -> Weights:
        """Return θ_i; the global model at a client that has not trained yet."""
        if not client_state:
            return weights
        return Weights(group(client_state, "params"), group(client_state, "buffers"))

    def _theta(self, here: Params, gradient: Callable[[Params], Params], first: Params) -> dict[str, Tensor]:
        theta, slope = dict(here), first
        for number in range(self.K):
            slope = gradient(theta) if number else first
            theta = {
                name: value - self.inner_lr * (slope[name] + self.lam * (value - here[name]))
                for name, value in theta.items()
            }
        return theta


ALGORITHMS: tuple[type[Algorithm], ...] = (PFedMe,)
