"""pFedMe: clients minimise the Moreau envelope of their loss (T. Dinh et al. 2020, Alg. 1).

f_i(w) = min_θ F_i(θ) + (λ/2)‖θ − w‖² has the gradient λ(w − θ(w)), where θ(w) is the personal model. Every local step
approaches θ by K gradient steps from w on the step's mini-batch. The local optimizer then takes w along λ(w − θ). With
plain SGD that is the paper's w ← w − ηλ(w − θ); other local optimizers minimise the same envelope.

Deviation: after the last step the deployed θ is approached once more, by K steps on all of the client's examples. The
paper keeps the θ of the last mini-batch.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from medfed.algorithms.parts import ClientRound, Finished, LocalPart
from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Params
from medfed.federated.local import LocalStep, Trained
from medfed.federated.state import Weights, group, join
from medfed.study import algorithms as settings


class PFedMe(settings.PFedMe, LocalPart):
    """θ_i ≈ argmin F_i(θ) + (λ/2)‖θ − w_i‖² is deployed."""

    def correct(self, gradients: Params, step: LocalStep, here: ClientRound) -> Params:
        """Return λ(w − θ); ``gradients``, taken at w, serve as the first of the K."""
        place = {name: value.detach() for name, value in step.params.items()}
        theta = self._theta(place, step.gradient, gradients)
        return {name: self.lam * (value - theta[name]) for name, value in place.items()}

    def finish(self, trained: Trained, here: ClientRound) -> Finished:
        """Keep θ_i, with the local statistics."""
        site = trained.site
        place = {name: value.to(site.settings.device) for name, value in trained.weights.params.items()}
        with torch_seeded(site.seed, site.client, here.broadcast.round, "theta"):
            theta = self._theta(place, trained.gradient, trained.gradient(place))
        params = {name: value.cpu() for name, value in theta.items()}
        return Finished(join({"params": params, "buffers": trained.weights.buffers}), {})

    def deployed(self, weights: Weights, kept: Params) -> Weights:
        """Return θ_i; the global model at a client that has not trained yet."""
        return Weights(group(kept, "params"), group(kept, "buffers")) if kept else weights

    def _theta(self, place: Params, gradient: Callable[[Params], Params], first: Params) -> dict[str, Tensor]:
        theta, slope = dict(place), first
        for number in range(self.K):
            slope = gradient(theta) if number else first
            theta = {
                name: value - self.inner_lr * (slope[name] + self.lam * (value - place[name]))
                for name, value in theta.items()
            }
        return theta
