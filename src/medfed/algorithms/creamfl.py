"""CreamFL: representations of public examples travel, models do not (Yu et al. 2023, Alg. 1).

Clients train on their own data with two contrasts on public examples: *inter-modal*, each representation to the global
one of the other modality of the same example, against those of all other examples; *intra-modal*, to the global one of
its own modality, away from the client's own of its last round. They send their representations of the public examples.
The server weighs them by how well they match the global ones of the other modality (global-local contrastive
aggregation), trains its model on the public labels, distils the aggregate into it, and sends out its representations.

Representations are unit vectors, aligned by example id. Every tensor an upload could hold is always there, in one shape
(the gate wants that); ``sent`` tells which rows of it count. Every party sees a public example in the same view
(:func:`medfed.federated.representations.view`), in eval mode.

Deviation:
    - A task with one modality, or with modalities of unequal width, has no other modality to compare with: the same
      modality stands in for it. With three or more, scores and inter-modal losses are means over the others.
    - The paper's round begins with the server's training; here it ends with it, so the first round's broadcast holds no
      representations and the clients of that round train without contrast.
    - A client without a last round has no intra-modal contrast.
    - Every local step takes one mini-batch of every public task the client has, beside the private ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from medfed.algorithms.keeping import KeepsTensors, group
from medfed.core.errors import StudyError
from medfed.core.rng import numpy_rng
from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Broadcast, Params, Update
from medfed.federated.algorithm import Aggregate, Algorithm, Federation
from medfed.federated.local import LocalStep, Trained, Upload
from medfed.federated.representations import (
    Ensemble,
    Exchanged,
    evaluating,
    federated,
    held_modalities,
    matching_loss,
    pull_push,
    represent_public,
    unit_representations,
    view,
)
from medfed.federated.server import Targets, distillation_losses, label_losses, minimise
from medfed.federated.state import FederatedState, join, load_weights, weights_of
from medfed.study.federation import ClientSettings


class CreamFL(KeepsTensors):
    """Contrastive representation ensemble and aggregation. No setting is FedAvg: no weight ever travels.

    With γ = 0 the clients learn alone; with ``kd_weight`` = 0 the server learns from public labels alone.

    Attributes:
        gamma: γ, weight of both contrasts at the client.
        temperature: τ of both contrasts.
        kd_weight: weight of the distillation ‖f(x) − aggregate‖².
        server_lr: learning rate of the server's Adam, whose moments start afresh every round.
        server_epochs: the server's passes over the public examples, of labels and of distillation each.
        server_batch_size: examples per server step.
    """

    name: ClassVar[str] = "creamfl"
    uses_public: ClassVar[bool] = True
    gamma: float = Field(default=0.5, ge=0)
    temperature: float = Field(default=0.5, gt=0)
    kd_weight: float = Field(default=0.3, ge=0)
    server_lr: float = Field(default=2e-4, gt=0)
    server_epochs: int = Field(default=1, gt=0)
    server_batch_size: int = Field(default=32, gt=0)

    def private(self, params: Params, buffers: Params) -> frozenset[str]:
        """Return every name: models stay where they are."""
        return frozenset((*params, *buffers))

    def broadcast(self, state: FederatedState, base: str) -> Broadcast:
        """Return the global representations; in round 1 there are none yet."""
        return replace(super().broadcast(state, base), state=state.server_state)

    def penalty(self, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Tensor | None:
        """Return γ times both contrasts on a mini-batch of every public task the client has, the mean over tasks."""
        if self.gamma == 0 or not broadcast.state:
            return None
        world, past = Exchanged.from_tensors(broadcast.state), Exchanged.from_tensors(group(client_state, "previous"))
        held = held_modalities({name: step.site.tasks[name] for name in sorted(step.site.tasks) if name in world.ids})
        terms = [
            term
            for name, modalities in held.items()
            for term in [self._contrast(step, name, modalities, broadcast.round, world, past)]
            if term is not None
        ]
        return self.gamma * torch.stack(terms).mean() if terms else None

    def upload(self, trained: Trained, broadcast: Broadcast, client_state: Params) -> Upload:
        """Send the representations of the public examples, in the tasks and modalities the client has."""
        kept, site = super().upload(trained, broadcast, client_state), trained.site
        own = represent_public(site.model, site.public, held_modalities(site.tasks), site.settings).tensors()
        return replace(kept, state=own, client_state={**kept.client_state, **join({"previous": own})})

    def upload_like(self, state: FederatedState, federation: Federation) -> Params:
        """Return blank representations."""
        return represent_public(_model(federation), federation.public, {}, self._settings(federation)).tensors()

    def aggregate(self, state: FederatedState, updates: Iterator[Update], federation: Federation) -> Aggregate:
        """Aggregate the clients' representations, train the server's model and return its new representations."""
        model, public, settings = _model(federation), federation.public, self._settings(federation)
        load_weights(model, state.weights)
        everything = {name: examples.task.modalities for name, examples in public.items()}
        if state.server_state:
            world = Exchanged.from_tensors(state.server_state)
        else:
            world = represent_public(model, public, everything, settings)
        targets = _ensemble(world, updates)
        key = (federation.seed, "server", state.round + 1)
        losses = label_losses(model, public, settings, *key)
        if self.kd_weight:
            distances = distillation_losses(model, public, world, targets, settings, *key)
            losses = chain(losses, (self.kd_weight * distance for distance in distances))
        with torch_seeded(*key):
            minimise(model, losses, settings)
        new = represent_public(model, public, everything, settings)
        return Aggregate(*weights_of(model), new.tensors())

    def _settings(self, federation: Federation) -> ClientSettings:
        """Return how the server trains."""
        return ClientSettings(
            optimizer="adam",
            lr=self.server_lr,
            batch_size=self.server_batch_size,
            local_epochs=self.server_epochs,
            device=str(next(_model(federation).parameters()).device),
        )

    def _contrast(
        self, step: LocalStep, task: str, modalities: tuple[str, ...], round: int, world: Exchanged, past: Exchanged
    ) -> Tensor | None:
        """Return the contrasts of one task, the mean over modalities; None if the mini-batch has none of them."""
        site, examples = step.site, step.site.public[task]
        rng = numpy_rng(site.seed, site.client, round, step.index, task, "public")
        size = min(site.settings.batch_size, len(examples))
        batch = view(examples, rng.choice(len(examples), size, replace=False)).to(site.settings.device)
        rows = world.find(task, batch.examples)
        with evaluating(site.model):
            own = unit_representations(site.model, examples.task, batch, site.settings)
        terms = []
        for name in modalities:
            if not bool((here := batch.present[name]).any()):
                continue
            vectors, places = own[name][here], rows[here]
            inter = matching_loss(vectors, places, world.partners(task, name), self.temperature)
            terms.append(inter.mean())
            if task in past.rows:
                near, far = world.rows[task][name].vectors[places], past.rows[task][name].vectors[places]
                intra = pull_push((vectors * near).sum(-1), (vectors * far).sum(-1), self.temperature)
                terms[-1] = terms[-1] + intra.mean()
        return torch.stack(terms).mean() if terms else None


def _ensemble(world: Exchanged, updates: Iterator[Update]) -> Targets:
    """Return the aggregate of the clients' representations; rows of examples the server does not know count nowhere."""
    ensembles = {
        task: {name: Ensemble(world.partners(task, name)) for name in parts} for task, parts in world.rows.items()
    }
    for update in updates:
        sent = Exchanged.from_tensors(update.state)
        for task, parts in ensembles.items():
            agreed = sent.ids[task] == world.ids[task]
            for name, ensemble in parts.items():
                rows = sent.rows[task][name]
                ensemble.add(rows.vectors, rows.has & agreed)
    return {task: {name: ensemble.mean() for name, ensemble in parts.items()} for task, parts in ensembles.items()}


def _model(federation: Federation) -> nn.Module:
    if not federation.public:
        raise StudyError(
            "creamfl needs public examples on the server", where="algorithm", hint="give the server a public share"
        )
    return federated(federation.model)


ALGORITHMS: tuple[type[Algorithm], ...] = (CreamFL,)
