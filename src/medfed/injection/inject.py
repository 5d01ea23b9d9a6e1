"""Knowledge injection: every round the server trains the LLM's adapters, and the aggregated encoders with them, on the
public data (FedKIM Sec. 2.3.2).

The loss is the cross-entropy of the answer tokens alone, averaged over an answer's tokens and then over the examples.
The target is a label or the answer of the aggregated heads (:mod:`medfed.injection.distil`). Examples of similar prompt
length share a forward (:mod:`medfed.injection.batching`), those of one task alone where the LLM's layers flatten
examples and tokens. Their gradients add up to those of one mean.

Batches and dropout are drawn from (seed, round, epoch, step): a resumed run equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from medfed.core.errors import RunError
from medfed.core.files import write_whole
from medfed.core.rng import numpy_rng
from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Params
from medfed.federated.state import copied, join, split, trainable_params
from medfed.federated.training import load_slots, slots_of
from medfed.injection.batching import Draw, epoch_order
from medfed.injection.distil import DistillationBatch, check_finite, distillation_batches, train_public
from medfed.injection.encode import Group, encode_ahead, encode_draws, token_dims
from medfed.injection.experts import save_experts
from medfed.injection.model import InjectedModel
from medfed.injection.predict import LLMPredictor
from medfed.injection.rehearsal import Rehearsal, Words
from medfed.injection.router import entropy, mutual_information, total_variation
from medfed.llm.foundation import Foundation
from medfed.models.multimodal import MultimodalModel
from medfed.records.folder import file_bytes
from medfed.records.schema import InjectionFile, Step
from medfed.study.injection import TINY_LR, InjectionSettings
from medfed.tasks.base import Task, TaskSet


class Injector(LLMPredictor):
    """The server's side: the injected LLM, its optimizer, and the encoders it shares with the federated ``model``.

    These are read and trained in place, so they must keep their identity. ``tasks`` are all of the run, trained or not.
    ``alone``, there are no clients (FedKIM_pub). Raises StudyError if the LLM cannot answer a task.
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
        self._alone, self._seed, device = alone, seed, foundation.move_to(settings.device)
        settings = settings.for_llm(foundation.width, from_disk=foundation.info.get("kind") == "huggingface")
        dims = token_dims(model.to(device), head_tokens=settings.head_tokens)
        with torch_seeded(seed, "inject", "init"):
            injected = InjectedModel(foundation, dims, settings).move_to(device).eval()
        super().__init__(model, injected, settings, device)
        for task in tasks:
            injected.check(task)
        self._mixes_tasks = injected.routed is None or not injected.routed.flattens_batch()
        self._adapters = {name: value for name, value in injected.named_parameters() if value.requires_grad}
        encoders = {} if settings.encoder_lr == 0 else trainable_params(model.encoders)
        self._params = {**self._adapters, **{f"encoders.{name}": value for name, value in encoders.items()}}
        self._optimizer = self._new_optimizer()
        self._rehearsal = Rehearsal(injected, settings, seed) if settings.rehearses else None
        self._words = Words(injected, settings, seed) if settings.keeps_words else None

    def check_texts(self) -> None:
        """Raise DataError or StudyError if texts are to be rehearsed, and cannot be."""
        if self._rehearsal is not None:
            _ = self._rehearsal.pieces

    def inject(
        self, public: Mapping[str, TaskSet], round_number: int, num_rounds: int = 1, done: int = 0
    ) -> Iterator[Step]:
        """Train one round on the public examples of the trained tasks, yielding a record per step.

        Raises RunError if there are no public examples, or a loss is not finite.

        Args:
            public: sets by task.
            round_number: counts from 1; batches and dropout are drawn from it.
            num_rounds: rounds that inject, for the warm-up; with 1 it lies in this round, whatever its number.
            done: steps taken before, whose work model and adapters hold already.
        """
        settings, size = self._settings, self._settings.batch_size
        sets = {name: examples for name, examples in public.items() if len(examples)}
        if not sets:
            raise RunError("no public examples", where=f"round {round_number}", hint="give split.ratios a public share")
        if not settings.keep_optimizer_state and not done:
            self._optimizer = self._new_optimizer()
        if settings.public_lr and not done:
            train_public(self._model, sets, settings.public_lr, self._seed, round_number, alone=self._alone)
        orders = self._orders(sets, round_number)
        encoded = self._encoder_of(sets, list(chain.from_iterable(orders)))
        starts = [(epoch, start) for epoch, order in enumerate(orders) for start in range(0, len(order), size)]
        num_steps = len(starts)
        before, warmup = min(round_number, num_rounds) - 1, (settings.warmup or 0) * num_rounds * num_steps
        for step, (epoch, start) in enumerate(starts[done:], start=done):
            with torch_seeded(self._seed, "inject", round_number, epoch, start):
                self._train(mode=True)
                groups = encoded(orders[epoch][start : start + size])
                self._warm_up(before * num_steps + step, warmup)
                aligning = round_number <= settings.align_rounds
                facts = self._step(groups, (round_number, epoch, start), aligning=aligning)
            for loss in (facts["loss"], *facts.get("rehearsal", {}).values()):
                check_finite(loss, f"injection, round {round_number}, step {step}", "lower injection.lr")
            yield Step(round=round_number, epoch=epoch, step=step, **facts)

    def _orders(self, sets: Mapping[str, TaskSet], round_number: int) -> list[list[Draw]]:
        """Return the order of the examples in every epoch."""
        settings, targets = self._settings, {name: examples.targets.numpy() for name, examples in sets.items()}
        balance = {"balance_tasks": settings.balance_tasks, "balance_classes": settings.balance_classes}
        rngs = [numpy_rng(self._seed, "inject", round_number, epoch) for epoch in range(settings.num_epochs)]
        return [epoch_order(targets, rng, **balance) for rng in rngs]

    def _encoder_of(
        self, sets: Mapping[str, TaskSet], draws: Sequence[Draw]
    ) -> Callable[[Sequence[Draw]], list[Group]]:
        """Return a function that encodes some of ``draws``; frozen encoders run here, once."""
        self._tokens.clear()
        if frozen := self._settings.encoder_lr == 0:
            self._train(mode=True)
            if ahead := encode_ahead(self._model, sets, draws, self._device):
                return ahead
        return partial(encode_draws, self._model, sets, device=self._device, frozen=frozen)

    def _step(self, groups: Sequence[Group], key: tuple[int, int, int], *, aligning: bool) -> dict[str, Any]:
        """Take an optimizer step on the mean loss over all examples; ``aligning`` moves the projectors alone.

        ``key`` is round, epoch and start of the batch. Returns the fields of a :class:`Step` that say how it went.
        """
        batches = distillation_batches(self._model, groups, self._settings)
        losses, facts = self._backward(batches), dict[str, Any]()
        if self._rehearsal is not None and not aligning:
            facts["rehearsal"] = self._rehearsal.backward(*key)
        if self._words is not None and not aligning:
            inquiries = [self._with_heads(group) for group in self._words.drawn(groups, *key)]
            facts["rehearsal"] = {**facts.get("rehearsal", {}), "words": self._words.backward(inquiries)}
        if aligning:
            for name, value in self._params.items():
                if not name.startswith("projectors."):
                    value.grad = None
        norm = nn.utils.clip_grad_norm_(self._params.values(), self._settings.max_grad_norm or torch.inf)
        self._optimizer.step()
        self._optimizer.zero_grad()
        by_task: dict[str, list[Tensor]] = {}
        for batch, part in zip(batches, losses, strict=True):
            by_task.setdefault(batch.group.task.name, []).append(part)
        means = {name: torch.cat(by_task[name]).mean().item() for name in sorted(by_task)}
        return {"loss": torch.cat(losses).mean().item(), "losses": means, "grad_norm": norm.item(), **facts}

    def _backward(self, batches: Sequence[DistillationBatch]) -> list[Float[Tensor, " _"]]:
        """Add up the gradients of the mean loss over all examples, bucket by bucket; return the losses by example.

        The graph is cut at α and at the encoders' tokens, which all buckets share. Below the cuts it runs once.
        """
        tasks = {batch.group.task.name: batch.group.task for batch in batches}
        row_of = {name: row for row, name in enumerate(tasks)}
        cut, alpha = GraphCut(), self.injected.alpha(list(tasks.values()))
        mixture = cut.leaf(alpha)
        leaves = [{name: cut.leaf(tokens) for name, tokens in batch.group.encoded.items()} for batch in batches]
        groups = [self._with_heads(one.group._replace(encoded=some)) for one, some in zip(batches, leaves, strict=True)]
        count = sum(len(batch.target) for batch in batches)
        losses: dict[int, Tensor] = {}
        for bucket in self._buckets(groups):
            rows = [row_of[groups[number].task.name] for number in bucket for _ in batches[number].target]
            rows = rows[:1] if len(set(rows)) == 1 else rows
            with self.injected.mixing(mixture[torch.tensor(rows, device=mixture.device)]):
                likelihoods = self.injected([groups[number] for number in bucket])
                parts = [self._loss(batches[n], part) for n, part in zip(bucket, likelihoods, strict=True)]
                (torch.cat(parts).sum() / count).backward()  # type: ignore[no-untyped-call]
            losses |= {number: part.detach() for number, part in zip(bucket, parts, strict=True)}
        weight = self._settings.routing_weight
        cut.backward(*([-weight * mutual_information(alpha)] if weight else []))
        return [losses[number] for number in range(len(batches))]

    def _buckets(self, groups: Sequence[Group]) -> list[list[int]]:
        """Divide ``groups`` into buckets of similar length, of one task each where a batch can have but one α."""
        together: dict[str, list[int]] = {}
        for number, group in enumerate(groups):
            together.setdefault("" if self._mixes_tasks else group.task.name, []).append(number)
        buckets = []
        for numbers in together.values():
            parts = self.injected.buckets([groups[number] for number in numbers])
            buckets += [[numbers[place] for place in part] for part in parts]
        return buckets

    def _loss(self, batch: DistillationBatch, likelihoods: Float[Tensor, "batch answer"]) -> Float[Tensor, " batch"]:
        """Return the mean cross-entropy of an answer's tokens, expected under the target, per example."""
        lengths = likelihoods.new_tensor([len(answer) for answer in self.injected.prompt(batch.group.task).answers])
        return -(batch.target * likelihoods / lengths).sum(-1)

    def _warm_up(self, step: int, num_steps: float) -> None:
        """Set the rates of ``step``, counted from 0: they rise linearly over the first ``num_steps``, if any."""
        if num_steps:
            for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * min(1.0, (step + 1) / num_steps)

    def _new_optimizer(self) -> torch.optim.AdamW:
        settings, lr = self._settings, self._settings.lr or TINY_LR
        groups: dict[float, dict[str, Any]] = {}
        for name, value in self._params.items():
            if name.startswith("encoders."):
                rate = lr if settings.encoder_lr is None else settings.encoder_lr
            else:
                rate = settings.router_lr if ".router." in name else lr
            groups.setdefault(rate, {"params": [], "lr": rate})["params"].append(value)
        self._rates = list(groups)
        betas = (0.9, settings.beta_2)
        return torch.optim.AdamW(groups.values(), betas=betas, weight_decay=settings.weight_decay, fused=True)

    @torch.no_grad()
    def routing(self, tasks: Sequence[Task]) -> Float[Tensor, "task expert"]:
        """Return the expert weights of ``tasks``; ones for a single expert, no columns without experts."""
        return self.injected.alpha(tasks).cpu()

    def routing_record(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """Return α and its entropy by task, and the mean distance between tasks; empty without a router."""
        if self.injected.routed is None:
            return {"alpha": {}, "entropy": {}, "total_variation": None}
        names, alpha = [task.name for task in tasks], self.routing(tasks)
        by_task = [dict(zip(names, values.tolist(), strict=True)) for values in (alpha, entropy(alpha))]
        return {"alpha": by_task[0], "entropy": by_task[1], "total_variation": total_variation(alpha)}

    def state(self) -> dict[str, Tensor]:
        """Return projectors, router, experts and the optimizer's slots; the encoders are the federated model's."""
        return join({"params": copied(self._adapters), "slots": slots_of(self._optimizer, self._params)})

    @torch.no_grad()
    def load_state(self, state: Params) -> None:
        """Load the tensors that :meth:`state` returned; raise RunError if it is the state of other settings."""
        params, slots = split(state, ("params", "slots")).values()
        given, expected = ({(name, value.shape) for name, value in some.items()} for some in (params, self._adapters))
        if wrong := sorted(given ^ expected):
            hint = "resume with the same settings"
            raise RunError("not a tensor of this LLM's adapters", where=wrong[0][0], hint=hint)
        for name, value in self._adapters.items():
            value.copy_(params[name])
        self._optimizer = self._new_optimizer()
        load_slots(self._optimizer, self._params, slots)

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's layout, the projectors, and the settings."""
        folder.mkdir(parents=True, exist_ok=True)
        foundation = self.injected.foundation
        if self.injected.adapted is not None:
            save_experts(self.injected.adapted, folder / "adapter", foundation.name)
        projectors = {name: value.contiguous() for name, value in self.injected.projectors.state_dict().items()}
        save_file(projectors, folder / "projectors.safetensors")
        settings = self._settings.model_dump(mode="json")
        record = InjectionFile(foundation=foundation.name, settings=settings, offsets=dict(self.offsets))
        write_whole(folder / "injection.json", file_bytes(record))


class GraphCut:
    """Cuts a graph in two: above the cut it runs forward and backward in pieces, below once."""

    def __init__(self) -> None:
        self._cuts: list[tuple[Tensor, Tensor]] = []

    def leaf(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return ``value`` as a leaf that gathers gradients; one that needs none stays as it is."""
        if not value.requires_grad:
            return value
        leaf = value.detach().requires_grad_()
        self._cuts.append((value, leaf))
        return leaf

    def backward(self, *losses: Float[Tensor, ""]) -> None:
        """Propagate the gathered gradients, with those of ``losses``, which are below the cut themselves."""
        below: list[tuple[Tensor, Tensor | None]] = [(loss, None) for loss in losses if loss.requires_grad]
        below += [(value, leaf.grad) for value, leaf in self._cuts if leaf.grad is not None]
        if below:
            torch.autograd.backward([value for value, _ in below], [grad for _, grad in below])
