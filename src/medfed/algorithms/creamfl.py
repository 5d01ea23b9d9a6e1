"""CreamFL: representations of public examples travel, models do not (Yu et al. 2023, Alg. 1).

Clients train on their own data with two contrasts on public examples. The inter-modal one pulls a representation to the
global one of the other modality of the same example, against those of all other examples. The intra-modal one pulls it
to the global one of its own modality, away from the client's of its last round. Clients send their representations of
the public examples. The server weighs them by their match with the global ones of the other modality: global-local
contrastive aggregation. It trains its model on the public labels, distils the aggregate into it, and sends out the new
representations.

Representations are unit vectors, aligned by example id. Every tensor an upload could hold is always there, in one shape
(the gate wants that); ``sent`` tells which rows of it count. Every party sees a public example in the same view
(:func:`medfed.algorithms.representations.view`), in eval mode.

Deviation:
    - A task with one modality, or with modalities of unequal width, has no other modality to compare with: the same
      modality stands in for it. With three or more, scores and inter-modal losses are means over the others.
    - The paper's round begins with the server's training; here it ends with it. The first round's broadcast holds no
      representations, so its clients train without contrast.
    - A client without a last round has no intra-modal contrast.
    - Every local step takes one mini-batch of every public task the client has, next to the private ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from medfed.algorithms.parts import laid_over, picked
from medfed.algorithms.representations import (
    Ensemble,
    Exchanged,
    Rows,
    evaluating,
    federated,
    held_modalities,
    matching_loss,
    pull_push,
    represent_public,
    unit_representations,
    view,
)
from medfed.core.errors import RunError, StudyError
from medfed.core.rng import Key, numpy_rng
from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Batch, Broadcast, Params, Update
from medfed.federated.algorithm import Aggregate, Algorithm, Federation
from medfed.federated.local import LocalStep, Trained, Upload, autocast, num_batches, steps
from medfed.federated.state import FederatedState, Weights, group, join, load_weights, trainable_params, weights_of
from medfed.federated.training import make_optimizer
from medfed.study.algorithms import CreamFL as CreamFLSettings
from medfed.study.federation import ClientSettings
from medfed.tasks.base import TaskSet, trainable

Public = Mapping[str, TaskSet]
"""Task → public examples."""
Targets = Mapping[str, Mapping[str, Rows]]
"""Task → modality → the representations that the server's model shall come to have."""


class CreamFL(Algorithm, CreamFLSettings):
    """Contrastive representation ensemble and aggregation."""

    def private(self, params: Params, buffers: Params) -> frozenset[str]:
        """Return every name: models stay where they are."""
        return frozenset((*params, *buffers))

    def init_client(self, initial: Weights) -> Params:
        """Return the initial model: every client keeps its own."""
        return _model_of(initial)

    def start(self, broadcast: Broadcast, client_state: Params) -> Weights:
        """Return the client's own model."""
        return laid_over(Weights(broadcast.params, broadcast.buffers), client_state)

    def broadcast(self, state: FederatedState, base: str) -> Broadcast:
        """Return the global representations; in round 1 there are none yet."""
        return replace(super().broadcast(state, base), state=state.server_state)

    def penalty(self, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Tensor | None:
        """Return γ times both contrasts on a mini-batch of every public task the client has, the mean over tasks."""
        if self.gamma == 0 or not broadcast.state:
            return None
        world, past = Exchanged.from_tensors(broadcast.state), Exchanged.from_tensors(group(client_state, "previous"))
        held = held_modalities({name: step.site.tasks[name] for name in sorted(step.site.tasks) if name in world.ids})
        contrasts = (self._contrast(step, task, held[task], broadcast.round, world, past) for task in held)
        terms = [term for term in contrasts if term is not None]
        return self.gamma * torch.stack(terms).mean() if terms else None

    def upload(self, trained: Trained, broadcast: Broadcast, client_state: Params) -> Upload:
        """Send the representations of the public examples, in the tasks and modalities the client has."""
        site = trained.site
        sent = represent_public(site.model, site.public, held_modalities(site.tasks), site.settings).tensors()
        kept = {**_model_of(trained.weights), **join({"previous": sent})}
        return Upload(trained.delta, trained.shared_buffers(broadcast), sent, kept)

    def upload_like(self, state: FederatedState, federation: Federation) -> Params:
        """Return blank representations."""
        return represent_public(_model(federation), federation.public, {}, self._settings(federation)).tensors()

    def aggregate(self, state: FederatedState, updates: Iterator[Update], federation: Federation) -> Aggregate:
        """Aggregate the clients' representations, train the server's model and return its new representations."""
        model, public, settings = _model(federation), federation.public, self._settings(federation)
        load_weights(model, state.weights)
        everything = {name: examples.task.modalities for name, examples in public.items()}
        known = Exchanged.from_tensors(state.server_state) if state.server_state else None
        world = known or represent_public(model, public, everything, settings)
        targets = _ensemble(world, updates)
        key = (federation.seed, "server", state.round + 1)
        losses = _label_losses(model, public, settings, *key)
        if self.kd_weight:
            distances = _distillation_losses(model, public, world, targets, settings, *key)
            losses = chain(losses, (self.kd_weight * distance for distance in distances))
        with torch_seeded(*key):
            _minimise(model, losses, settings)
        new = represent_public(model, public, everything, settings)
        return Aggregate(*weights_of(model), new.tensors())

    def deployed(self, weights: Weights, client_state: Params) -> Weights:
        """Return the client's own model."""
        return laid_over(weights, client_state)

    def _settings(self, federation: Federation) -> ClientSettings:
        """Return how the server trains: by Adam, the default."""
        device, size = str(next(_model(federation).parameters()).device), self.server_batch_size
        return ClientSettings(lr=self.server_lr, batch_size=size, local_epochs=self.server_epochs, device=device)

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
            live = unit_representations(site.model, examples.task, batch, site.settings)
        terms = []
        for name in modalities:
            if not bool((here := batch.present[name]).any()):
                continue
            vectors, places = live[name][here], rows[here]
            inter = matching_loss(vectors, places, world.partners(task, name), self.temperature)
            terms.append(inter.mean())
            if task in past.rows:
                near, far = world.rows[task][name].vectors[places], past.rows[task][name].vectors[places]
                intra = pull_push((vectors * near).sum(-1), (vectors * far).sum(-1), self.temperature)
                terms[-1] = terms[-1] + intra.mean()
        return torch.stack(terms).mean() if terms else None


def _model_of(weights: Weights) -> dict[str, Tensor]:
    return picked(weights, frozenset((*weights.params, *weights.buffers)))


def _ensemble(world: Exchanged, updates: Iterator[Update]) -> Targets:
    """Return the aggregate of the clients' representations; rows of examples the server does not know count nowhere."""
    sums = {task: {name: Ensemble(world.partners(task, name)) for name in parts} for task, parts in world.rows.items()}
    for update in updates:
        sent = Exchanged.from_tensors(update.state)
        for task, parts in sums.items():
            agreed = sent.ids[task] == world.ids[task]
            for name, ensemble in parts.items():
                rows = sent.rows[task][name]
                ensemble.add(rows.vectors, rows.has & agreed)
    return {task: {name: ensemble.mean() for name, ensemble in parts.items()} for task, parts in sums.items()}


def _model(federation: Federation) -> nn.Module:
    if not federation.public:
        what, hint = "creamfl needs public examples on the server", "give the server a public share"
        raise StudyError(what, where="algorithm", hint=hint)
    return federated(federation.model)


def _minimise(model: nn.Module, losses: Iterable[Tensor], settings: ClientSettings) -> None:
    """Take an optimizer step for each of ``losses``, evaluated in turn; raise RunError if one is not finite."""
    params = list(trainable_params(model).values())
    optimizer = make_optimizer(params, settings)
    model.train()
    for loss in losses:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunError(f"a loss is {value}", where="the server's training", hint="lower algorithm.server_lr")
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    model.zero_grad()


def _label_losses(model: nn.Module, public: Public, settings: ClientSettings, *key: Key) -> Iterator[Tensor]:
    """Yield, step by step, the mean over tasks of the loss on public labels."""
    for items in steps(public, settings, *key, "labels"):
        losses = []
        for item in items:
            batch = item.batch.to(settings.device)
            with autocast(settings):
                losses.append(item.weight * trainable(item.task).loss(model(item.task, batch), batch))
        yield torch.stack(losses).sum()


def _distillation_losses(
    model: nn.Module, public: Public, known: Exchanged, targets: Targets, settings: ClientSettings, *key: Key
) -> Iterator[Tensor]:
    """Yield, batch by batch, ‖f(x) − target‖²: mean over the examples that have one, sum over modalities."""
    for epoch in range(settings.local_epochs):
        for name, positions in _draws(public, settings.batch_size, *key, "distillation", epoch):
            examples = public[name]
            batch = view(examples, positions)
            rows = known.find(name, batch.examples)
            live = unit_representations(model, examples.task, batch.to(settings.device), settings)
            parts = targets[name].items()
            distances = (_distance(live[modality], batch, modality, target, rows) for modality, target in parts)
            if terms := [distance for distance in distances if distance is not None]:
                yield torch.stack(terms).sum()


def _distance(live: Tensor, batch: Batch, modality: str, target: Rows, rows: Tensor) -> Tensor | None:
    has = target.has[rows] & batch.present[modality]
    if not bool(has.any()):
        return None
    return (live[has] - target.vectors[rows][has].to(live.device)).square().sum(-1).mean()


def _draws(public: Public, size: int, *key: Key) -> list[tuple[str, np.ndarray]]:
    """Return one pass over all tasks as batches in random order."""
    rng = numpy_rng(*key)
    batches = [
        (name, positions)
        for name, examples in sorted(public.items())
        for positions in np.split(rng.permutation(len(examples)), np.arange(1, num_batches(len(examples), size)) * size)
    ]
    return [batches[number] for number in rng.permutation(len(batches))]
