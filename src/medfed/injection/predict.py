"""The injected LLM as a predictor: probabilities of the answers to closed questions, texts for open ones.

Closed questions are scored by the log-likelihoods of all answers, in one forward per batch. Where examples bring
questions of different length, it is one per bucket. Nothing is random and nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from medfed.core.types import Batch
from medfed.injection.encode import Group, TokenCache, by_question, encode, with_head_tokens
from medfed.injection.model import InjectedModel
from medfed.llm.decoding import Words, answer_text
from medfed.models.multimodal import MultimodalModel
from medfed.study.injection import InjectionSettings
from medfed.tasks.base import Task, TaskSet

T = TypeVar("T")


class LLMPredictor:
    """Answers questions about examples with the LLM ``injected`` and the encoders and heads of ``model``.

    ``device`` is that of both models' inputs. ``offsets`` hold, by task and question, the log-likelihoods that
    :meth:`score` subtracts from the answers' (:meth:`calibrate`).
    """

    def __init__(
        self, model: MultimodalModel, injected: InjectedModel, settings: InjectionSettings, device: str
    ) -> None:
        self._model, self._settings, self._device, self.injected = model, settings, device, injected
        self._tokens = TokenCache(model)
        self.offsets: dict[str, list[float]] = {}

    def score(self, task: Task, batch: Batch) -> Float[Tensor, "batch answer"]:
        """Return the probability of every answer, trained task or not; deterministic, on the CPU."""
        return self._probabilities(task, self.log_likelihoods(task, batch))

    def score_set(self, examples: TaskSet, batch_size: int) -> Float[Tensor, "example answer"]:
        """Return :meth:`score` of all examples in order, ``batch_size`` per forward."""
        with self._answering(examples.task):
            likelihoods = [self._likelihoods(group) for group in self._groups(examples, batch_size)]
        return self._probabilities(examples.task, torch.cat(likelihoods).cpu())

    def log_likelihoods(self, task: Task, batch: Batch) -> Float[Tensor, "batch answer"]:
        """Return the log-likelihood of every answer, not calibrated, on the CPU."""
        with self._answering(task):
            return self._likelihoods(self._group(task, batch)).cpu()

    def answer(self, task: Task, batch: Batch, max_new_tokens: int) -> list[Words]:
        """Return the greedily decoded answer to every example's question; deterministic."""
        with self._answering(task):
            return self._answers(self._group(task, batch), max_new_tokens)

    def answer_set(self, examples: TaskSet, max_new_tokens: int, batch_size: int) -> list[Words]:
        """Return :meth:`answer` of all examples in order, ``batch_size`` per forward."""
        with self._answering(examples.task):
            return [text for one in self._groups(examples, batch_size) for text in self._answers(one, max_new_tokens)]

    def calibrate(self, tasks: Sequence[Task], public: Mapping[str, TaskSet]) -> None:
        """Set ``offsets`` for the questions of untrained ``tasks``, from unlabelled public examples like theirs.

        Deviation: batch calibration (Zhou et al. 2024) divides by the mean probability over the batch under test. This
        is the mean log-likelihood over public examples, so that no test example depends on another.
        """
        for task in tasks:
            pools = [examples for examples in public.values() if examples.task.modalities == task.modalities]
            with self._answering(task):
                groups = chain.from_iterable(self._groups(pool, self._settings.batch_size) for pool in pools)
                likelihoods = [self._likelihoods(group._replace(task=task)) for group in groups]
            if likelihoods:
                self.offsets[f"{task.name}: {task.question}"] = torch.cat(likelihoods).mean(0).tolist()

    @contextmanager
    def _answering(self, task: Task) -> Iterator[None]:
        """Mix the experts for ``task``; nothing is trained inside the block."""
        self._train(mode=False)
        with torch.no_grad(), self.injected.mixing(self.injected.alpha([task])):
            yield

    def _group(self, task: Task, batch: Batch) -> Group:
        return encode(self._model, [(task, batch.to(self._device))])[0]

    def _groups(self, examples: TaskSet, batch_size: int) -> Iterator[Group]:
        return self._tokens.groups(examples, batch_size, self._device)

    def _likelihoods(self, group: Group) -> Float[Tensor, "batch answer"]:
        return torch.cat(self._in_buckets(group, self.injected))

    def _answers(self, group: Group, max_new_tokens: int) -> list[Words]:
        parts = self._in_buckets(group, lambda groups: self.injected.answer_ids(groups, max_new_tokens), max_new_tokens)
        tokenizer = self.injected.foundation.tokenizer
        return [Words(answer_text(one.ids, tokenizer), one.cut) for part in parts for one in part]

    def _in_buckets(
        self, group: Group, predict: Callable[[Sequence[Group]], Sequence[T]], num_forwards: int = 1
    ) -> list[T]:
        """Return the result of ``predict`` for every question of ``group``, questions of like length together."""
        groups = by_question(self._with_heads(group))
        results: dict[int, T] = {}
        for bucket in self.injected.buckets(groups, num_forwards):
            results.update(zip(bucket, predict([groups[number] for number in bucket]), strict=True))
        return [results[number] for number in range(len(groups))]

    def _with_heads(self, group: Group) -> Group:
        return with_head_tokens(self._model, group) if self._settings.head_tokens else group

    def _probabilities(self, task: Task, likelihoods: Float[Tensor, "batch answer"]) -> Float[Tensor, "batch answer"]:
        if offset := self.offsets.get(f"{task.name}: {task.question}"):  # either may occur with another
            likelihoods = likelihoods - likelihoods.new_tensor(offset)
        return likelihoods.softmax(-1)

    def _train(self, *, mode: bool) -> None:
        """Switch to training or answering, only if need be: a walk through all modules outlasts a small layer."""
        if self.injected.training != mode:
            self.injected.train(mode)
        if self._model.training:
            self._model.eval()
        learning = mode and self._settings.encoder_lr != 0
        if self._model.encoders.training != learning:
            self._model.encoders.train(learning)
