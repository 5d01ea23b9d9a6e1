"""What a task is: a dataset's target as a head, a loss and metrics for the clients, and as a prompt for the LLM.

One object serves both stages. The question and the two descriptions of the FedKIM tasks are data and stand verbatim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from medfed.core.errors import StudyError
from medfed.core.types import Batch
from medfed.datasets.decoded import Decoded
from medfed.tasks.examples import TaskSet

Json = Any
"""A value that JSON can hold: what a model responds to an example, or what would be right."""


class Task(BaseModel, ABC):
    """What is asked of a dataset; :class:`TrainableTask` adds what clients train, :class:`ClosedTask` a head.

    Attributes:
        name: short name; also the head's name ("cd").
        title: what a table prints.
        dataset: registry name of the dataset.
        target: the dataset's target column.
        modalities: modalities the task reads, in prompt order.
        question: the prompt's question, verbatim.
        answers: answer strings by class index.
        task_description: read by the router.
        modality_description: read by the router.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[str]

    name: str
    title: str
    dataset: str
    target: str
    modalities: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    task_description: str
    modality_description: str

    @property
    def target_columns(self) -> tuple[str, ...]:
        """Index columns of which one must be known for an example to count."""
        return (self.target,)

    @property
    def stratum_columns(self) -> tuple[str, ...]:
        """Index columns by which splits and partitions are stratified; Dirichlet partitions skew their values."""
        return self.target_columns

    def targets(self, data: Decoded) -> Shaped[np.ndarray, "example *target"]:
        """What is right for every example: here its class index, −1 where it has none."""
        return data.target(self.target)

    def usable(self, data: Decoded) -> Bool[np.ndarray, " example"]:
        """Which examples belong to the task."""
        return np.asarray(self.targets(data) >= 0, bool)

    def counts(self, examples: TaskSet) -> dict[str, int]:
        """How many examples there are, by answer, for the record of who holds what."""
        targets = examples.targets.tolist()
        return {answer: targets.count(number) for number, answer in enumerate(self.answers)}

    def questions(self, data: Decoded) -> tuple[str, ...]:
        """Question of every example; empty where all are asked the task's one."""
        return ()


class TrainableTask(Task, ABC):
    """A task that clients can train: it has a loss, and what a model says of an example can be judged.

    Attributes:
        metric_kind: which metrics judge it, a key of the registry in ``evaluation.kinds``.
    """

    metric_kind: ClassVar[str]

    @abstractmethod
    def loss(self, outputs: Float[Tensor, "..."], batch: Batch) -> Float[Tensor, ""]:
        """Mean loss over the batch; ``outputs`` is what the model's ``forward`` returns for this task."""

    def augment(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Return a training batch as the model shall see it (a random crop, say), drawn from ``rng``."""
        return batch

    @abstractmethod
    def respond(self, model: nn.Module, examples: TaskSet) -> list[Json]:
        """Return what ``model``, in eval mode, says of every example, in order."""

    @abstractmethod
    def truths(self, examples: TaskSet) -> list[Json]:
        """Return what is right for every example, in order."""

    def constants(self, examples: TaskSet) -> dict[str, list[Json]]:
        """Return what predictors that look at nothing say of every example, by name: ``always-…`` or ``constant-…``."""
        return {}


RESPONSE_BATCH_SIZE = 64
"""Examples per forward when a model is asked."""


class ClosedTask(TrainableTask, ABC):
    """A task with a head: the clients train it, and one question with a few answers puts it to the LLM."""

    metric_kind: ClassVar[str] = "classification"

    @abstractmethod
    def head(self, dim: int) -> nn.Module:
        """Return the client's decoder: ``[batch, dim]`` → outputs of this task."""

    @abstractmethod
    def loss(self, outputs: Float[Tensor, "batch *out"], batch: Batch) -> Float[Tensor, ""]:
        """Mean loss over the batch."""

    @abstractmethod
    def predict(self, outputs: Float[Tensor, "batch *out"]) -> Float[Tensor, " batch *score"]:
        """Turn outputs into the scores that metrics read (a probability)."""

    def respond(self, model: nn.Module, examples: TaskSet) -> list[Json]:
        """Return the probability of every answer."""
        return self.probabilities(model, examples).tolist()

    def probabilities(self, model: nn.Module, examples: TaskSet) -> Float[Tensor, "example answer"]:
        """Return the probabilities of the answers, on the CPU, in float64."""
        device = next(model.parameters()).device
        batches = (batch.to(device) for batch in examples.batches(RESPONSE_BATCH_SIZE))
        return torch.cat([self.predict(model(self, batch)) for batch in batches]).cpu().double()

    def truths(self, examples: TaskSet) -> list[Json]:
        """Return the class index of every example."""
        return examples.targets.tolist()

    def constants(self, examples: TaskSet) -> dict[str, list[Json]]:
        """Return one constant predictor per answer."""
        sure = torch.eye(len(self.answers)).tolist()
        return {
            f"always-{answer.lower()}": [sure[number]] * len(examples) for number, answer in enumerate(self.answers)
        }


def trainable(task: Task) -> TrainableTask:
    """Return ``task`` as one that clients can train.

    Raises:
        StudyError: it has no loss.
    """
    if not isinstance(task, TrainableTask):
        raise StudyError(
            "an open question has no loss, so clients cannot train it",
            where=f"task {task.name!r}",
            hint="list it under `unseen`: it is asked of the injected LLM only",
        )
    return task


def closed(task: Task) -> ClosedTask:
    """Return ``task`` as one that clients can train.

    Raises:
        StudyError: it has no head.
    """
    if not isinstance(task, ClosedTask):
        raise StudyError(
            "an open question has no head, so clients cannot train it",
            where=f"task {task.name!r}",
            hint="list it under `unseen`: it is asked of the injected LLM only",
        )
    return task
