"""Base of the tasks: a dataset's target with head, loss and metrics for the clients, and with a prompt for the LLM.

One object serves both stages. The question and the two descriptions of the FedKIM tasks are the paper's words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from medfed.core.errors import StudyError
from medfed.core.types import Batch
from medfed.datasets.base import Card
from medfed.datasets.decoded import Decoded

__all__ = ["ClosedTask", "Task", "TaskSet", "TrainableTask"]

Rows = Int[np.ndarray, " example"]
Json = Any
"""A value that JSON can hold: a model's response to an example, or its truth."""
RESPONSE_BATCH_SIZE = 64
"""Examples per forward when a model responds."""


class Task(BaseModel, ABC):
    """A question about a dataset; :class:`TrainableTask` adds a loss for the clients, :class:`ClosedTask` a head.

    Attributes:
        name: short name; also the head's name ("cd"), while ``title`` is the name in tables.
        dataset: registry name of the dataset, of which ``target`` is a column.
        modalities: modalities the task reads, in prompt order.
        question: the prompt's question, verbatim; ``answers`` are by class index. The router reads the descriptions.
        negation, paraphrases: the question's opposite, and the question in other words (:meth:`opposite`).
        metric_kind: the scorer of its answers, by its name in ``evaluation.scorers``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[str]
    metric_kind: ClassVar[str]
    trainable: ClassVar[bool] = False
    """Whether clients can train it."""
    injectable: ClassVar[bool] = False
    """Whether it can be taught to the LLM: one question with one answer of a few."""

    name: str
    title: str
    dataset: str
    target: str
    modalities: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    task_description: str
    modality_description: str
    negation: str = ""
    paraphrases: tuple[str, ...] = ()

    @property
    def opposite(self) -> str:
        """The question whose yes is this question's no: as declared, or by a rule."""
        return self.negation or f"Is the answer to the following question no? {self.question}"

    @property
    def reworded(self) -> tuple[str, ...]:
        """The question in other words: as declared, or by two rules."""
        return self.paraphrases or (f"Answer yes or no. {self.question}", f"Tell me: {self.question}")

    @property
    def target_columns(self) -> tuple[str, ...]:
        """Index columns of which one must be known for an example to count."""
        return (self.target,)

    @property
    def stratum_columns(self) -> tuple[str, ...]:
        """Index columns by which splits and partitions are stratified; Dirichlet partitions skew their values."""
        return self.target_columns

    def targets(self, data: Decoded) -> Shaped[np.ndarray, "example *target"]:
        """The truth of every example: here its class index, −1 where it has none."""
        return data.target(self.target)

    def usable(self, data: Decoded) -> Bool[np.ndarray, " example"]:
        """Which examples belong to the task."""
        return np.asarray(self.targets(data) >= 0, bool)

    def counts(self, examples: TaskSet) -> dict[str, int]:
        """How many examples there are, by answer, for the record of who holds what."""
        targets = examples.targets.tolist()
        return {answer: targets.count(number) for number, answer in enumerate(self.answers)}

    def questions(self, data: Decoded) -> tuple[str, ...]:
        """Question of every example; empty if all have the task's one."""
        return ()

    @abstractmethod
    def truths(self, examples: TaskSet) -> list[Json]:
        """Return the truth of every example, in order."""


class TrainableTask(Task, ABC):
    """A task that clients can train: it has a loss, and a model's response to an example can be scored."""

    trainable: ClassVar[bool] = True

    @abstractmethod
    def loss(self, outputs: Float[Tensor, "..."], batch: Batch) -> Float[Tensor, ""]:
        """Mean loss over the batch; ``outputs`` is what the model's ``forward`` returns for this task."""

    def augment(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Return a training batch as the model shall see it (a random crop, say), drawn from ``rng``."""
        return batch

    @abstractmethod
    def respond(self, model: nn.Module, examples: TaskSet) -> list[Json]:
        """Return the response of ``model``, in eval mode, to every example, in order."""

    def constants(self, examples: TaskSet) -> dict[str, list[Json]]:
        """Return the responses of predictors without input, by name: ``always-…`` or ``constant-…``."""
        return {}


class ClosedTask(TrainableTask, ABC):
    """A task with a head: the clients train it, and one question with a few answers puts it to the LLM."""

    injectable: ClassVar[bool] = True
    metric_kind: ClassVar[str] = "classification"

    def head(self, dim: int) -> nn.Module:
        """Return the client's decoder, ``[batch, dim]`` → outputs of this task: a layer norm and a linear layer."""
        return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, len(self.answers)))

    @abstractmethod
    def predict(self, outputs: Float[Tensor, "batch *out"]) -> Float[Tensor, " batch *score"]:
        """Turn outputs into the scores that metrics read (a probability)."""

    def respond(self, model: nn.Module, examples: TaskSet) -> list[Json]:
        """Return the probability of every answer."""
        return self.probabilities(model, examples).tolist()

    def probabilities(self, model: nn.Module, examples: TaskSet) -> Float[Tensor, "example answer"]:
        """Return the probabilities of the answers, on the CPU, in float64."""
        return torch.cat([self.predict(model(self, batch)) for batch in examples.batches_for(model)]).cpu().double()

    def truths(self, examples: TaskSet) -> list[Json]:
        """Return the class index of every example."""
        return examples.targets.tolist()

    def constants(self, examples: TaskSet) -> dict[str, list[Json]]:
        """Return one constant predictor per answer."""
        sure = zip(self.answers, torch.eye(len(self.answers)).tolist(), strict=True)
        return {f"always-{answer.lower()}": [row] * len(examples) for answer, row in sure}


def trainable(task: Task) -> TrainableTask:
    """Return ``task`` as one that clients can train; raise :class:`StudyError` if it has no loss."""
    if isinstance(task, TrainableTask):
        return task
    raise _untrainable(task, "loss")


def closed(task: Task) -> ClosedTask:
    """Return ``task`` as one with a head; raise :class:`StudyError` if it has none."""
    if isinstance(task, ClosedTask):
        return task
    raise _untrainable(task, "head")


def _untrainable(task: Task, part: str) -> StudyError:
    what, hint = f"an open question has no {part}", "list it under `unseen`: only the injected LLM answers it"
    return StudyError(f"{what}, so clients cannot train it", where=f"task {task.name!r}", hint=hint)


class Labels(NamedTuple):
    """Targets and questions of a whole dataset, made once for all parties that hold some of it."""

    targets: Shaped[np.ndarray, "example *target"]
    questions: tuple[str, ...]


class TaskSet:
    """The examples of one task that one party (a client, the server's public set, …) may see.

    They are ``rows`` of the whole dataset, which other parties share, as they do its ``labels``: see :meth:`holding`.
    """

    def __init__(self, task: Task, data: Decoded, rows: Rows, labels: Labels | None = None) -> None:
        self.task, self.data, self.rows = task, data, rows
        self.labels = labels or Labels(task.targets(data), task.questions(data))

    @classmethod
    def from_arrays(
        cls,
        task: Task,
        samples: Mapping[str, Shaped[np.ndarray, "example *sample"]],
        targets: Int[np.ndarray, " example"],
        source: str = "arrays",
    ) -> TaskSet:
        """Return arrays as examples of ``task``: every modality is present, every example a patient."""
        count = len(targets)
        ids = [f"{source}-{task.name}-{number}" for number in range(count)]
        index = pl.DataFrame({"example": ids, "patient": ids, task.target: pl.Series(targets, dtype=pl.Int8)})
        card = Card(title=source, version="1", licence="own", access="in memory", citation="none")
        data = Decoded(source, card, index, samples, {name: np.ones(count, bool) for name in samples})
        return cls(task, data, np.arange(count))

    def holding(self, rows: Rows) -> TaskSet:
        """Return other ``rows`` of the same task and dataset; the labels are shared, not copied."""
        return TaskSet(self.task, self.data, rows, self.labels)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def targets(self) -> Shaped[Tensor, "example *target"]:
        """The truth of every example."""
        return torch.from_numpy(self.labels.targets[self.rows])

    @property
    def examples(self) -> list[str]:
        """Id of every example."""
        return [self.data.examples[row] for row in self.rows]

    @property
    def patients(self) -> list[str]:
        """Patient of every example."""
        return [str(patient) for patient in self.data.index["patient"].gather(self.rows)]

    def batch(self, positions: Int[np.ndarray, " batch"]) -> Batch:
        """Return the examples at ``positions`` (into this set) as one batch."""
        rows = self.rows[positions]
        targets, questions = self.labels
        return Batch(
            {name: torch.from_numpy(self.data.samples[name][rows]) for name in self.task.modalities},
            {name: torch.from_numpy(self.data.present[name][rows]) for name in self.task.modalities},
            torch.from_numpy(targets[rows]),
            tuple(self.data.examples[row] for row in rows),
            tuple(questions[row] for row in rows) if questions else (),
        )

    def batches(self, size: int) -> list[Batch]:
        """Return all examples in order, in batches of at most ``size``."""
        return [self.batch(np.arange(start, min(start + size, len(self)))) for start in range(0, len(self), size)]

    def batches_for(self, model: nn.Module) -> Iterator[Batch]:
        """Yield all examples in order, in batches on the model's device."""
        device = next(model.parameters()).device
        return (batch.to(device) for batch in self.batches(RESPONSE_BATCH_SIZE))
