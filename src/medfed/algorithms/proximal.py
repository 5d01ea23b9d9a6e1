"""A pull towards the global model x: FedProx in the local loss, Ditto and pFedMe for a personal model.

FedProx (Li et al. 2020, Eq. 2) adds (μ/2)‖y − x‖² to the local loss. FedKIM prints the factor λ/2 with λ = 1e-4; λ is
``mu`` here. Private tensors are not pulled: they have no global value.

Ditto (Li et al. 2021, Alg. 1) trains next to the shared model a personal one, which minimises
h_i(v) = F_i(v) + (λ/2)‖v − x‖², x being the broadcast. It has its own batch-norm statistics and takes as many steps as
the local one. Any server's step may find x: the paper leaves it open.

pFedMe (T. Dinh et al. 2020, Alg. 1) minimises the Moreau envelope f_i(w) = min_θ F_i(θ) + (λ/2)‖θ − w‖². It has the
gradient λ(w − θ(w)), where θ(w) is the personal model. Every local step approaches θ by K gradient steps from w on the
step's mini-batch. The local optimizer then takes w along λ(w − θ). With plain SGD that is the paper's w ← w − ηλ(w −
θ); other local optimizers minimise the same envelope.

Deviation: after the last step the θ of pFedMe is approached once more, by K steps on all of the client's examples. The
paper keeps the θ of the last mini-batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medfed.algorithms.parts import ClientRound, Finished, LocalPart
from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Params
from medfed.federated.local import LocalStep, Trained
from medfed.federated.state import Weights, group, join
from medfed.study import algorithms as settings


class FedProx(settings.FedProx, LocalPart):
    """Local loss + (μ/2)‖y − x‖²."""

    def penalty(self, step: LocalStep, here: ClientRound) -> Tensor | None:
        """Return (μ/2)‖y − x‖² over the parameters that train and travel, or None where μ is 0."""
        return _pull(self.mu, step, here)


class Ditto(settings.Ditto, LocalPart):
    """x does not see λ; v_i ← v_i − η(∇F_i(v_i) + λ(v_i − x)) is deployed."""

    def init_client(self, initial: Weights) -> Params:
        """Return the personal model at its start: the model's initial weights."""
        return _kept(initial)

    def personal(self, here: ClientRound) -> Weights:
        """Return the personal model of the client's last round."""
        return self.deployed(here.start, here.kept)

    def penalty(self, step: LocalStep, here: ClientRound) -> Tensor | None:
        """Return (λ/2)‖v − x‖² for the personal model, nothing for the local one."""
        return _pull(self.lam, step, here) if step.personal else None

    def finish(self, trained: Trained, here: ClientRound) -> Finished:
        """Keep the personal model."""
        return Finished(here.kept if trained.personal is None else _kept(trained.personal), {})

    def deployed(self, weights: Weights, kept: Params) -> Weights:
        """Return the personal model."""
        return Weights(group(kept, "params"), group(kept, "buffers"))


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


def _kept(weights: Weights) -> dict[str, Tensor]:
    return join({"params": weights.params, "buffers": weights.buffers})


def _pull(strength: float, step: LocalStep, here: ClientRound) -> Tensor | None:
    """Return (strength/2)‖y − x‖² over the parameters that train and travel, or None where it is 0."""
    world = here.broadcast.params
    squares = [(local - world[name]).square().sum() for name, local in step.params.items() if name in world]
    return 0.5 * strength * torch.stack(squares).sum() if strength and squares else None
