"""Knowledge injection: every round the server trains the LLM's adapters, and the aggregated encoders with them, on the
public data (FedKIM Sec. 2.3.2).

The loss is the cross-entropy of the answer tokens alone, averaged over an answer's tokens and then over the examples.
What the loss asks for is a label or what the aggregated heads say (:mod:`medfed.injection.distil`).
Examples of similar prompt length share a forward (:mod:`medfed.injection.inject`), those of one task alone where the
LLM's layers flatten examples and tokens; their gradients add up to those of one mean.
Where the LLM's loss leaves the encoders alone, these run once per round.
Batches and dropout are drawn from (seed, round, epoch, step): a resumed run equals an uninterrupted one bit for bit.

What injection leaves in the logs: a record per step, and the router's weights per round.

The order of the public examples in one injection epoch.

Tasks are mixed within a batch. Balanced over tasks, every task gives the same number of examples to an epoch, and every
batch as nearly so as its size allows; balanced over classes, so does every class within its task. The smaller ones
repeat, each in fresh permutations.

Length bucketing: examples of similar prompt length share a forward, instead of padding all to the longest.

A forward costs its padded positions, and a fixed part that does not depend on them (Python, kernel launches). Groups of
examples sorted by length are cut where that sum is least: a tiny LLM is not run twice to save ten positions, a large
one is. The fixed part is counted in positions, from the size of the LLM alone: nothing is timed while a run goes on,
so a resumed run makes the same buckets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from medfed.core.errors import RunError
from medfed.core.rng import numpy_rng
from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Params
from medfed.federated.optimizer import load_slots, slots_of
from medfed.federated.state import copied, join, split, trainable_params
from medfed.injection.batching import Draw, Seam, epoch_order
from medfed.injection.distil import Lesson, lessons, train_public
from medfed.injection.encode import Group, encode_drawn, encode_draws, shown_dims
from medfed.injection.experts import flattens, save_experts
from medfed.injection.model import InjectedModel
from medfed.injection.predict import Answering
from medfed.injection.router import entropy, mutual_information, total_variation
from medfed.llm.foundation import Foundation
from medfed.models.multimodal import MultimodalModel
from medfed.study.injection import InjectionSettings
from medfed.tasks.base import Task, TaskSet


class Injector(Answering):
    """The server's side: the injected LLM, its optimizer, and the encoders it shares with the federated model.

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
        self._alone, self._seed = alone, seed
        device = foundation.move_to(settings.device)
        model.to(device)
        dims = shown_dims(model, head_tokens=settings.head_tokens)
        with torch_seeded(seed, "inject", "init"):
            injected = InjectedModel(foundation, dims, settings).move_to(device).eval()
        super().__init__(model, injected, settings, device)
        for task in tasks:
            self.injected.check(task)
        routed = self.injected.routed
        self._mixes_tasks = routed is None or not flattens(routed)
        self._own = {name: value for name, value in self.injected.named_parameters() if value.requires_grad}
        self._params = {**self._own, **self._encoder_params()}
        self._optimizer = self._new_optimizer()

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
            train_public(self._model, sets, self._settings.public_lr, self._device, *key, alone=self._alone)
        orders = [self._order(sets, round_number, epoch) for epoch in range(self._settings.num_epochs)]
        encoded = self._reader(sets, list(chain.from_iterable(orders)))
        step = 0
        for epoch, order in enumerate(orders):
            for start in range(0, len(order), self._settings.batch_size):
                draws = order[start : start + self._settings.batch_size]
                with torch_seeded(self._seed, "inject", round_number, epoch, start):
                    self._train(mode=True)
                    aligning = round_number <= self._settings.align_rounds
                    loss, losses, norm = self._step(encoded(draws), aligning=aligning)
                yield StepRecord(epoch, step, finite(loss, round_number, step), losses, norm)
                step += 1

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

    def _reader(self, sets: Mapping[str, TaskSet], draws: Sequence[Draw]) -> Callable[[Sequence[Draw]], list[Group]]:
        """Return what makes examples out of some of ``draws``; encoders that stay as they are run here, once."""
        self._tokens.forget()
        frozen = self._settings.encoder_lr == 0
        if frozen:
            self._train(mode=True)
            ahead = encode_drawn(self._model, sets, draws, self._device)
            if ahead is not None:
                return ahead.groups
        return partial(encode_draws, self._model, sets, device=self._device, frozen=frozen)

    def _step(self, groups: Sequence[Group], *, aligning: bool) -> tuple[float, dict[str, float], float]:
        """Take an optimizer step on the mean loss over all examples, bucket by bucket; return what a record needs."""
        taught = lessons(self._model, groups, self._settings)
        tasks = {lesson.group.task.name: lesson.group.task for lesson in taught}
        alpha, seam = self.injected.alpha(list(tasks.values())), Seam()
        mixed = seam.cut(alpha)
        shown = [self._shown(_cut(lesson.group, seam)) for lesson in taught]
        places, count = {name: place for place, name in enumerate(tasks)}, sum(len(lesson.wanted) for lesson in taught)
        losses: dict[int, Tensor] = {}
        for bucket in self._buckets(shown):
            rows = [places[taught[number].group.task.name] for number in bucket for _ in taught[number].wanted]
            rows = rows[:1] if len(set(rows)) == 1 else rows
            with self.injected.mixing(mixed[torch.tensor(rows, device=mixed.device)]):
                found = self.injected([shown[number] for number in bucket])
                parts = [self._answer_loss(taught[n], part) for n, part in zip(bucket, found, strict=True)]
                (torch.cat(parts).sum() / count).backward()  # type: ignore[no-untyped-call]
            losses |= {number: part.detach() for number, part in zip(bucket, parts, strict=True)}
        weight = self._settings.routing_weight
        seam.backward(*([-weight * mutual_information(alpha)] if weight else []))
        if aligning:
            self._keep_gradients_of("projectors.")
        norm = nn.utils.clip_grad_norm_(self._params.values(), self._settings.max_grad_norm or torch.inf)
        self._optimizer.step()
        self._optimizer.zero_grad()
        ordered = [losses[number] for number in range(len(taught))]
        return torch.cat(ordered).mean().item(), by_task(taught, ordered), norm.item()

    def _buckets(self, shown: Sequence[Group]) -> list[list[int]]:
        """Divide ``shown`` into buckets of similar length, of one task each where a batch can have but one α."""
        if self._mixes_tasks:
            return self.injected.buckets(shown)
        by_name: dict[str, list[int]] = {}
        for number, group in enumerate(shown):
            by_name.setdefault(group.task.name, []).append(number)
        return [
            [numbers[place] for place in bucket]
            for numbers in by_name.values()
            for bucket in self.injected.buckets([shown[number] for number in numbers])
        ]

    def _answer_loss(self, lesson: Lesson, likelihoods: Float[Tensor, "batch answer"]) -> Float[Tensor, " batch"]:
        """Return the mean cross-entropy of an answer's tokens, expected under the wanted answers, per example."""
        lengths = likelihoods.new_tensor([len(answer) for answer in self.injected.prompt(lesson.group.task).answers])
        return -(lesson.wanted * likelihoods / lengths).sum(-1)

    def _keep_gradients_of(self, prefix: str) -> None:
        for name, value in self._params.items():
            if not name.startswith(prefix):
                value.grad = None


def _cut(group: Group, seam: Seam) -> Group:
    return group._replace(encoded={name: seam.cut(tokens) for name, tokens in group.encoded.items()})


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        epoch: 0-based, within the round.
        step: 0-based, within the round.
        loss: mean over the batch.
        losses: mean by task.
        grad_norm: before clipping.
    """

    epoch: int
    step: int
    loss: float
    losses: Mapping[str, float]
    grad_norm: float

    def as_json(self) -> dict[str, Any]:
        """Return the fields for a log."""
        return {**vars(self), "losses": dict(self.losses)}


def by_task(taught: Sequence[Lesson], losses: Sequence[Tensor]) -> dict[str, float]:
    """Return the mean loss by task; ``losses`` are per lesson and example."""
    parts: dict[str, list[Tensor]] = {}
    for lesson, part in zip(taught, losses, strict=True):
        parts.setdefault(lesson.group.task.name, []).append(part)
    return {name: torch.cat(parts[name]).mean().item() for name in sorted(parts)}


def finite(loss: float, round_number: int, step: int) -> float:
    """Return ``loss``; raise RunError if it is not finite."""
    if not math.isfinite(loss):
        raise RunError(
            f"the loss is {loss}", where=f"injection, round {round_number}, step {step}", hint="lower injection.lr"
        )
    return loss


def routing_record(names: Sequence[str], alpha: Float[Tensor, "task expert"] | None) -> dict[str, Any]:
    """Return α and its entropy by task name, and the mean distance between tasks; empty for None."""
    if alpha is None:
        return {"alpha": {}, "entropy": {}, "total_variation": None}
    return {
        "alpha": dict(zip(names, alpha.tolist(), strict=True)),
        "entropy": dict(zip(names, entropy(alpha).tolist(), strict=True)),
        "total_variation": total_variation(alpha),
    }
