"""Knowledge injection: every round the server trains the LLM's adapters, and the aggregated encoders with them, on the
public data (FedKIM Sec. 2.3.2).

The loss is the cross-entropy of the answer tokens alone, averaged over an answer's tokens and then over the examples.
What the loss asks for is a label or what the aggregated heads say (:mod:`medfed.injection.lessons`).
Closed questions are scored by comparing the log-likelihoods of all answers, in one forward pass per example.
Batches and dropout are drawn from (seed, round, epoch, step): a resumed run equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from medfed.errors import RunError
from medfed.federated.optimizer import load_slots, slots_of
from medfed.federated.state import copied, join, split, trainable_params
from medfed.injection.decoding import answer_text
from medfed.injection.encoding import HEAD, Group, by_question, encode, with_heads
from medfed.injection.experts import save_experts
from medfed.injection.foundation import Foundation
from medfed.injection.injected import InjectedModel
from medfed.injection.lessons import Lesson, lessons
from medfed.injection.public import train_public
from medfed.injection.records import StepRecord, by_task, finite, routing_record
from medfed.injection.router import mutual_information
from medfed.injection.sampling import Draw, epoch_order
from medfed.injection.settings import InjectionSettings
from medfed.modalities.base import Encoder
from medfed.models.multimodal import MultimodalModel
from medfed.rng import numpy_rng, torch_seeded
from medfed.tasks.base import Task, TaskSet
from medfed.types import Batch, Params

__all__ = ["InjectionSettings", "Injector", "StepRecord"]


class Injector:
    """The server's side: the injected LLM, its optimizer, and the encoders it shares with the federated model.

    Attributes:
        offsets: task and question → log-likelihood that :meth:`score` takes off each answer (:meth:`calibrate`).

    Args:
        foundation: the frozen LLM.
        model: the federated model; its encoders are read and trained in place, so they must keep their identity.
        tasks: every task that will be asked, trained or not; checked before anything is trained.
        settings: how to inject.
        seed: the run's.
        alone: there are no clients (FedKIM_pub).

    Raises:
        StudyError: a task cannot be asked.
    """

    def __init__(
        self,
        foundation: Foundation,
        model: MultimodalModel,
        tasks: Sequence[Task],
        settings: InjectionSettings,
        seed: int,
        *,
        alone: bool = False,
    ) -> None:
        self._alone = alone
        self._model, self._settings, self._seed = model.to(settings.device), settings, seed
        foundation.model.to(settings.device)
        dims = {name: cast(Encoder, encoder).dim for name, encoder in model.encoders.items()}
        if settings.head_tokens:
            dims |= {f"{HEAD}{name}": len(task.answers) for name, task in model.tasks.items()}
        with torch_seeded(seed, "inject", "init"):
            self.injected = InjectedModel(foundation, dims, settings).to(settings.device).eval()
        for task in tasks:
            self.injected.check(task)
        self._own = {name: value for name, value in self.injected.named_parameters() if value.requires_grad}
        self._params = {**self._own, **self._encoder_params()}
        self._optimizer = self._new_optimizer()
        self.offsets: dict[str, list[float]] = {}

    def inject(self, public: Mapping[str, TaskSet], round_number: int) -> Iterator[StepRecord]:
        """Train one round on the public examples of the trained tasks, yielding a record per step.

        Raises:
            RunError: there are no public examples, or a loss is not finite.
        """
        sets = {name: examples for name, examples in public.items() if len(examples)}
        if not sets:
            raise RunError("no public examples", where=f"round {round_number}", hint="give split.ratios a public share")
        if not self._settings.keep_optimizer_state:
            self._optimizer = self._new_optimizer()
        if self._settings.public_lr:
            key = (self._seed, round_number)
            rate, device = self._settings.public_lr, self._settings.device
            train_public(self._model, sets, rate, device, *key, alone=self._alone)
        step = 0
        for epoch in range(self._settings.num_epochs):
            order = self._order(sets, round_number, epoch)
            for start in range(0, len(order), self._settings.batch_size):
                with torch_seeded(self._seed, "inject", round_number, epoch, start):
                    drawn = _batches(sets, order[start : start + self._settings.batch_size], self._settings.device)
                    loss, losses, norm = self._step(drawn, aligning=round_number <= self._settings.align_rounds)
                yield StepRecord(epoch, step, finite(loss, round_number, step), losses, norm)
                step += 1

    @torch.no_grad()
    def score(self, task: Task, batch: Batch) -> Float[Tensor, "batch answer"]:
        """Return the probability of every answer, trained task or not; deterministic, on the CPU."""
        likelihoods = self._likelihoods(task, batch).cpu()
        if (key := _asked(task)) in self.offsets:
            likelihoods = likelihoods - likelihoods.new_tensor(self.offsets[key])
        probabilities: Tensor = likelihoods.softmax(-1)
        return probabilities

    @torch.no_grad()
    def calibrate(self, tasks: Sequence[Task], public: Mapping[str, TaskSet]) -> None:
        """Set ``offsets`` for the questions of ``tasks``, which were not trained, from unlabelled public examples.

        A task whose modalities no trained task has exactly stays as it is. Deviation: batch calibration (Zhou et al.
        2024) divides by the mean probability over the batch under test; this takes the mean log-likelihood over public
        examples, so that no test example depends on another.
        """
        for task in tasks:
            pools = [examples for examples in public.values() if examples.task.modalities == task.modalities]
            batches = [batch for examples in pools for batch in examples.batches(self._settings.batch_size)]
            if batches:
                said = torch.cat([self._likelihoods(task, batch) for batch in batches])
                self.offsets[_asked(task)] = said.mean(0).tolist()

    @torch.no_grad()
    def log_likelihoods(self, task: Task, batch: Batch) -> Float[Tensor, "batch answer"]:
        """Return the log-likelihood of every answer, not calibrated, on the CPU."""
        return self._likelihoods(task, batch).cpu()

    def _likelihoods(self, task: Task, batch: Batch) -> Float[Tensor, "batch answer"]:
        self._train(mode=False)
        batch = batch.to(self._settings.device)
        with self.injected.mixing(self.injected.alpha([task]).expand(len(batch), -1)):
            group = self._shown(Group(task, encode(self._model, [(task, batch)])[0], batch))
            return torch.cat(self.injected(by_question(group)))

    @torch.no_grad()
    def answer(self, task: Task, batch: Batch, max_new_tokens: int) -> list[str]:
        """Return the greedily decoded answer to every example's question, in words; deterministic."""
        self._train(mode=False)
        batch = batch.to(self._settings.device)
        with self.injected.mixing(self.injected.alpha([task]).expand(len(batch), -1)):
            group = self._shown(Group(task, encode(self._model, [(task, batch)])[0], batch))
            ids = self.injected.answer_ids(by_question(group), max_new_tokens)
        return [answer_text(answer, self.injected.foundation.tokenizer) for answer in ids]

    @torch.no_grad()
    def routing(self, tasks: Sequence[Task]) -> Float[Tensor, "task expert"]:
        """Return the expert weights of ``tasks``; ones where there is one expert, no columns where there is none."""
        return self.injected.alpha(tasks).cpu()

    def routing_record(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """Return α and its entropy by task, and the mean distance between tasks; empty where nothing is routed."""
        names = [task.name for task in tasks]
        return routing_record(names, None if self.injected.routed is None else self.routing(tasks))

    def state(self) -> dict[str, Tensor]:
        """Return projectors, router, experts and the optimizer's slots; the encoders are the federated model's."""
        return join({"params": copied(self._own), "slots": slots_of(self._optimizer, self._params)})

    @torch.no_grad()
    def load_state(self, state: Params) -> None:
        """Take up what :meth:`state` returned.

        Raises:
            RunError: it is the state of other settings.
        """
        parts = split(state, ("params", "slots"))
        wrong = sorted(parts["params"].keys() ^ self._own.keys())
        wrong += [
            name
            for name, value in parts["params"].items()
            if name in self._own and value.shape != self._own[name].shape
        ]
        if wrong:
            raise RunError("not a tensor of this LLM's adapters", where=wrong[0], hint="resume with the same settings")
        for name, value in self._own.items():
            value.copy_(parts["params"][name])
        self._optimizer = self._new_optimizer()
        load_slots(self._optimizer, self._params, parts["slots"])

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's layout, the projectors, and the settings."""
        folder.mkdir(parents=True, exist_ok=True)
        foundation = self.injected.foundation
        if self.injected.adapted is not None:
            save_experts(self.injected.adapted, folder / "adapter", foundation.name)
        projectors = {name: value.contiguous() for name, value in self.injected.projectors.state_dict().items()}
        save_file(projectors, folder / "projectors.safetensors")
        settings = self._settings.model_dump(mode="json")
        facts = {"foundation": foundation.name, "settings": settings, "offsets": self.offsets}
        (folder / "injection.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    def _encoder_params(self) -> dict[str, nn.Parameter]:
        if self._settings.encoder_lr == 0:
            return {}
        return {f"encoders.{name}": value for name, value in trainable_params(self._model.encoders).items()}

    def _new_optimizer(self) -> torch.optim.AdamW:
        groups: dict[float, list[nn.Parameter]] = {}
        for name, value in self._params.items():
            groups.setdefault(self._rate(name), []).append(value)
        rates = [{"params": params, "lr": rate} for rate, params in groups.items()]
        return torch.optim.AdamW(rates, weight_decay=self._settings.weight_decay, fused=True)

    def _rate(self, name: str) -> float:
        settings = self._settings
        if name.startswith("encoders."):
            return settings.lr if settings.encoder_lr is None else settings.encoder_lr
        return settings.router_lr if ".router." in name else settings.lr

    def _order(self, sets: Mapping[str, TaskSet], round_number: int, epoch: int) -> list[Draw]:
        targets = {name: examples.targets.numpy() for name, examples in sets.items()}
        return epoch_order(
            targets,
            numpy_rng(self._seed, "inject", round_number, epoch),
            balance_tasks=self._settings.balance_tasks,
            balance_classes=self._settings.balance_classes,
        )

    def _step(self, examples: Sequence[tuple[Task, Batch]], *, aligning: bool) -> tuple[float, dict[str, float], float]:
        self._train(mode=True)
        with torch.set_grad_enabled(self._settings.encoder_lr != 0):
            encoded = encode(self._model, examples)
        groups = [Group(task, shown, batch) for (task, batch), shown in zip(examples, encoded, strict=True)]
        taught = lessons(self._model, groups, self._settings)
        tasks = list({lesson.group.task.name: lesson.group.task for lesson in taught}.values())
        alpha = self.injected.alpha(tasks)
        rows = torch.tensor([tasks.index(lesson.group.task) for lesson in taught for _ in lesson.wanted])
        with self.injected.mixing(alpha[rows.to(alpha.device)]):
            found = self.injected([self._shown(lesson.group) for lesson in taught])
            per_lesson = [self._answer_loss(lesson, part) for lesson, part in zip(taught, found, strict=True)]
            loss = torch.cat(per_lesson).mean()
            reward = self._settings.routing_weight * mutual_information(alpha)
            (loss - reward).backward()  # type: ignore[no-untyped-call]
        if aligning:
            self._keep_gradients_of("projectors.")
        norm = nn.utils.clip_grad_norm_(self._params.values(), self._settings.max_grad_norm or torch.inf)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item(), by_task(taught, per_lesson), norm.item()

    def _answer_loss(self, lesson: Lesson, likelihoods: Float[Tensor, "batch answer"]) -> Float[Tensor, " batch"]:
        """Return the mean cross-entropy of an answer's tokens, expected under the wanted answers, per example."""
        lengths = likelihoods.new_tensor([len(answer) for answer in self.injected.prompt(lesson.group.task).answers])
        return -(lesson.wanted * likelihoods / lengths).sum(-1)

    def _shown(self, group: Group) -> Group:
        if not self._settings.head_tokens:
            return group
        shown = with_heads(self._model, group.task, group.encoded, len(group.batch))
        return group._replace(encoded=shown)

    def _keep_gradients_of(self, prefix: str) -> None:
        for name, value in self._params.items():
            if not name.startswith(prefix):
                value.grad = None

    def _train(self, *, mode: bool) -> None:
        self.injected.train(mode)
        self._model.eval().encoders.train(mode and self._settings.encoder_lr != 0)


def _asked(task: Task) -> str:
    """What an offset belongs to: another task may ask the same question, and another question may be put to a task."""
    return f"{task.name}: {task.question}"


def _batches(sets: Mapping[str, TaskSet], draws: Sequence[Draw], device: str) -> list[tuple[Task, Batch]]:
    """Gather the drawn examples by task."""
    batches = []
    for name in sorted({draw.task for draw in draws}):
        positions = np.array([draw.position for draw in draws if draw.task == name])
        batches.append((sets[name].task, sets[name].batch(positions).to(device)))
    return batches
