"""A client: local training on data that never leaves it (FedKIM Eq. 1 and 2; McMahan et al. 2017, ClientUpdate).

All tasks share the encoders, so one aggregation a round suffices. Some parameters no local example can reach: the
encoder of a modality the hospital lacks, the head of a task it has no data for. They stay out of the optimizer, so they
have no weight decay, no penalty, a change of zero, and no weight in the mean.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from torch import Tensor, nn

from medfed.core.errors import DataError
from medfed.core.types import Broadcast, Params, Update, component
from medfed.federated.algorithm import Algorithm
from medfed.federated.gate import delta_dtype
from medfed.federated.local import Site, Trained, Upload
from medfed.federated.state import Weights, join, persistent_buffers, split, trainable_params
from medfed.federated.training import LocalRun
from medfed.study.federation import ClientSettings
from medfed.tasks.base import TaskSet

STATE_GROUPS = ("algorithm", "optimizer")


class Client:
    """One hospital: private examples by task, and public ones by task that the server has as well.

    Tasks without examples are left out. Raises DataError if there is no example at all.
    """

    def __init__(self, id: str, tasks: Mapping[str, TaskSet], public: Mapping[str, TaskSet] | None = None) -> None:
        self.id, self.public = id, public or {}
        self.tasks = {name: tasks[name] for name in sorted(tasks) if len(tasks[name])}
        if not self.tasks:
            hint = "leave it out, or choose another partition"
            raise DataError("it has no training example", where=f"client {id!r}", hint=hint)

    @property
    def num_examples(self) -> int:
        """Private examples over all tasks: what the client registers with."""
        return sum(len(examples) for examples in self.tasks.values())

    def examples(self, components: set[str]) -> dict[str, int]:
        """Return, by component of the model, how many examples have a loss that reaches it.

        ``heads.<task>`` is reached by the task's examples, ``encoders.<modality>`` by those, of all tasks, that have
        the modality, and anything else by every example.
        """
        counts = dict.fromkeys(sorted(components), self.num_examples)
        counts |= {name: 0 for name in counts if name.startswith(("encoders.", "heads."))}
        for name, examples in self.tasks.items():
            reached = {f"heads.{name}": len(examples)}
            for modality in examples.task.modalities:
                reached[f"encoders.{modality}"] = int(examples.data.present[modality][examples.rows].sum())
            for part in reached.keys() & counts.keys():
                counts[part] += reached[part]
        return counts

    def train(
        self,
        model: nn.Module,
        broadcast: Broadcast,
        algorithm: Algorithm,
        client_state: Params,
        settings: ClientSettings,
        seed: int,
    ) -> tuple[Update, dict[str, Tensor]]:
        """Train one round and return the update and the client's new state.

        The weights of ``model`` are overwritten, so clients can share it. ``client_state`` is what the client kept from
        its last round (:func:`initial_client_state` at first). Batches and dropout depend on ``seed``, the client and
        the round. Raises RunError, naming client, round, task and step, if a loss is not finite.
        """
        started = time.perf_counter()
        state = split(client_state, STATE_GROUPS)
        site = Site(self.id, model.to(settings.device), self.tasks, self.public, settings, seed)
        weights = (*trainable_params(site.model), *persistent_buffers(site.model))
        examples = self.examples({component(name) for name in weights})
        here, private = _on_device(broadcast, settings.device), _moved(state["algorithm"], settings.device)
        run = LocalRun(site, here, algorithm, private, examples)
        fitted = run.fit(algorithm.start(here, private), state["optimizer"])
        second = algorithm.personal(here, private)
        personal = run.fit(second, {}, personal=True).weights if second else None
        delta = _delta(fitted.weights, broadcast)
        trained = Trained(site, fitted.weights, delta, self.num_examples, fitted.num_steps, examples, personal)
        upload = algorithm.upload(trained, broadcast, state["algorithm"])
        metrics = {f"loss.{task}": loss for task, loss in fitted.losses.items()}
        metrics["seconds"] = time.perf_counter() - started
        kept = join({"algorithm": upload.client_state, "optimizer": fitted.slots})
        return _update(trained, upload, broadcast, metrics), kept


def initial_client_state(algorithm: Algorithm, initial: Weights) -> dict[str, Tensor]:
    """Return the state of a client that has never trained; ``initial`` are the model's initial weights."""
    return join({"algorithm": algorithm.init_client(initial)})


def _update(trained: Trained, upload: Upload, broadcast: Broadcast, metrics: Mapping[str, float]) -> Update:
    components = sorted({component(name) for name in (*broadcast.params, *broadcast.buffers)})
    examples = {part: trained.examples[part] for part in components}
    facts = (trained.site.client, broadcast.round, broadcast.base)
    counts = (trained.num_examples, trained.num_steps)
    return Update(*facts, upload.delta, *counts, upload.buffers, upload.state, examples, metrics)


def _delta(weights: Weights, broadcast: Broadcast) -> dict[str, Tensor]:
    return {
        name: weights.params[name].to(delta_dtype(value.dtype)) - value.to("cpu", delta_dtype(value.dtype))
        for name, value in broadcast.params.items()
    }


def _moved(tensors: Params, device: str) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in tensors.items()}


def _on_device(broadcast: Broadcast, device: str) -> Broadcast:
    moved = (_moved(tensors, device) for tensors in (broadcast.params, broadcast.buffers, broadcast.state))
    return Broadcast(broadcast.round, broadcast.base, *moved)
