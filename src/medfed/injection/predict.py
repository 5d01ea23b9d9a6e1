"""The injected LLM as one asks it: probabilities of the answers to closed questions, words to open ones.

Closed questions are scored by comparing the log-likelihoods of all answers, in one forward per batch, or one per bucket
where examples bring questions of different length. Nothing is drawn and nothing is trained. What the encoders of the
clients' model make of a set of examples is computed once for all tasks that read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from medfed.core.types import Batch
from medfed.injection.encode import Group, TokenCache, by_question, encode, with_heads
from medfed.injection.model import InjectedModel
from medfed.llm.decoding import answer_text
from medfed.models.multimodal import MultimodalModel
from medfed.study.injection import InjectionSettings
from medfed.tasks.base import Task, TaskSet


class Answering:
    """Answers questions about examples.

    Attributes:
        injected: the LLM.
        offsets: task and question → log-likelihood that :meth:`score` takes off each answer (:meth:`calibrate`).

    Args:
        model: the federated model; its encoders and heads are read.
        injected: the LLM, in eval mode.
        settings: how examples are shown to it.
        device: where both models take their inputs.
    """

    def __init__(
        self, model: MultimodalModel, injected: InjectedModel, settings: InjectionSettings, device: str
    ) -> None:
        self._model, self._settings, self._device = model, settings, device
        self.injected = injected
        self._tokens = TokenCache(model)
        self.offsets: dict[str, list[float]] = {}

    @torch.no_grad()
    def score(self, task: Task, batch: Batch) -> Float[Tensor, "batch answer"]:
        """Return the probability of every answer, trained task or not; deterministic, on the CPU."""
        with self._asking(task):
            return self._probabilities(task, self._likelihoods(self._read(task, batch)))

    @torch.no_grad()
    def log_likelihoods(self, task: Task, batch: Batch) -> Float[Tensor, "batch answer"]:
        """Return the log-likelihood of every answer, not calibrated, on the CPU."""
        with self._asking(task):
            return self._likelihoods(self._read(task, batch)).cpu()

    @torch.no_grad()
    def score_set(self, examples: TaskSet, batch_size: int) -> Float[Tensor, "example answer"]:
        """Return :meth:`score` of all examples in order, ``batch_size`` per forward."""
        with self._asking(examples.task):
            said = [self._likelihoods(group) for group in self._groups(examples, batch_size)]
        return self._probabilities(examples.task, torch.cat(said))

    @torch.no_grad()
    def calibrate(self, tasks: Sequence[Task], public: Mapping[str, TaskSet]) -> None:
        """Set ``offsets`` for the questions of ``tasks``, which were not trained, from unlabelled public examples.

        A task whose modalities no trained task has exactly stays as it is. Deviation: batch calibration (Zhou et al.
        2024) divides by the mean probability over the batch under test; this takes the mean log-likelihood over public
        examples, so that no test example depends on another.
        """
        for task in tasks:
            pools = [examples for examples in public.values() if examples.task.modalities == task.modalities]
            with self._asking(task):
                said = [
                    self._likelihoods(group._replace(task=task))
                    for examples in pools
                    for group in self._groups(examples, self._settings.batch_size)
                ]
            if said:
                self.offsets[_asked(task)] = torch.cat(said).mean(0).tolist()

    @torch.no_grad()
    def answer(self, task: Task, batch: Batch, max_new_tokens: int) -> list[str]:
        """Return the greedily decoded answer to every example's question, in words; deterministic."""
        with self._asking(task):
            return self._answers(self._read(task, batch), max_new_tokens)

    @torch.no_grad()
    def answer_set(self, examples: TaskSet, max_new_tokens: int, batch_size: int) -> list[str]:
        """Return :meth:`answer` of all examples in order, ``batch_size`` per forward."""
        with self._asking(examples.task):
            groups = self._groups(examples, batch_size)
            return [text for group in groups for text in self._answers(group, max_new_tokens)]

    @contextmanager
    def _asking(self, task: Task) -> Iterator[None]:
        """Let the LLM answer questions of ``task``: nothing is trained inside the block."""
        self._train(mode=False)
        with self.injected.mixing(self.injected.alpha([task])):
            yield

    def _read(self, task: Task, batch: Batch) -> Group:
        batch = batch.to(self._device)
        return Group(task, encode(self._model, [(task, batch)])[0], batch)

    def _groups(self, examples: TaskSet, batch_size: int) -> Iterator[Group]:
        return self._tokens.groups(examples, batch_size, self._device)

    def _likelihoods(self, group: Group) -> Float[Tensor, "batch answer"]:
        groups = by_question(self._shown(group))
        found: dict[int, Tensor] = {}
        for bucket in self.injected.buckets(groups):
            said = self.injected([groups[number] for number in bucket])
            found.update(zip(bucket, said, strict=True))
        return torch.cat([found[number] for number in range(len(groups))])

    def _probabilities(self, task: Task, likelihoods: Float[Tensor, "batch answer"]) -> Float[Tensor, "batch answer"]:
        likelihoods = likelihoods.cpu()
        if (key := _asked(task)) in self.offsets:
            likelihoods = likelihoods - likelihoods.new_tensor(self.offsets[key])
        probabilities: Tensor = likelihoods.softmax(-1)
        return probabilities

    def _answers(self, group: Group, max_new_tokens: int) -> list[str]:
        groups = by_question(self._shown(group))
        found: dict[int, list[list[int]]] = {}
        for bucket in self.injected.buckets(groups, max_new_tokens):
            said = iter(self.injected.answer_ids([groups[number] for number in bucket], max_new_tokens))
            found |= {number: list(islice(said, len(groups[number].batch))) for number in bucket}
        tokenizer = self.injected.foundation.tokenizer
        return [answer_text(ids, tokenizer) for number in range(len(groups)) for ids in found[number]]

    def _shown(self, group: Group) -> Group:
        if not self._settings.head_tokens:
            return group
        shown = with_heads(self._model, group.task, group.encoded, len(group.batch))
        return group._replace(encoded=shown)

    def _train(self, *, mode: bool) -> None:
        """Switch to training or asking; walking through all modules takes longer than a small layer, so only then."""
        if self.injected.training != mode:
            self.injected.train(mode)
        if self._model.training:
            self._model.eval()
        learning = mode and self._settings.encoder_lr != 0
        if self._model.encoders.training != learning:
            self._model.encoders.train(learning)


def _asked(task: Task) -> str:
    """What an offset belongs to: another task may ask the same question, and another question may be put to a task."""
    return f"{task.name}: {task.question}"
