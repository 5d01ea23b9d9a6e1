"""Everything that responds to test examples, behind one protocol, and the predictions it leaves in a run.

The injected LLM, the aggregated heads, the federated-only, local and centralised models, the models deployed at the
clients, and the constants are all predictors. :mod:`medfed.runs.controls` has those that need no training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import polars as pl
import torch

from medfed.core.errors import RunError
from medfed.evaluation.scorers import SCORERS
from medfed.models.base import FederatedModel
from medfed.records.folder import RunFolder, prediction_file
from medfed.records.schema import Json, Prediction, TaskFacts, finite
from medfed.study.study import Study
from medfed.tasks.base import Task, TaskSet, trainable
from medfed.tasks.question_answering import QuestionAnswering

if TYPE_CHECKING:
    from medfed.injection.inject import Injector

BATCH_SIZE = 64
"""Examples per forward."""
INJECTED, DEPLOYED, HEADS = "fedkim", "federated", "heads"
"""In scores: the injected LLM; the federation's own model; the injected federation's aggregated heads."""
WATCHED = ("auroc", "balanced_accuracy")
"""Metrics followed over the rounds of an injection run."""
Responses = dict[str, list[Json]]
"""Model → its response to every example, in order."""


@runtime_checkable
class Predictor(Protocol):
    """One model, or several of a kind."""

    def __call__(self, examples: TaskSet, client: str | None) -> Responses:
        """Return the responses to ``examples``, which are tested at ``client``; none where the task is unknown."""
        ...


@dataclass(frozen=True)
class InjectedPredictor:
    """The injected LLM: the likelihood of the answer strings, and decoded answers to open questions."""

    injector: Injector
    max_new_tokens: int
    name: str = INJECTED

    @torch.inference_mode()
    def __call__(self, examples: TaskSet, client: str | None = None) -> Responses:
        """Return probabilities of the answers, with the decoded text where questions are open."""
        if not isinstance(examples.task, QuestionAnswering):
            return {self.name: self.injector.score_set(examples, BATCH_SIZE).double().tolist()}
        texts = self.injector.answer_set(examples, self.max_new_tokens, BATCH_SIZE)
        pairs = zip(texts, self.injector.score_set(examples, BATCH_SIZE).double().tolist(), strict=True)
        return {self.name: [{"text": text, "probabilities": given} for text, given in pairs]}


@dataclass(frozen=True)
class ModelPredictor:
    """A federated model with its heads or decoders, for the tasks that it was trained on."""

    name: str
    model: FederatedModel
    tasks: Collection[str]

    def __call__(self, examples: TaskSet, client: str | None = None) -> Responses:
        """Return what the model responds."""
        return {self.name: responses(self.model, examples)} if examples.task.name in self.tasks else {}


@dataclass(frozen=True)
class AtClients:
    """Models that differ from client to client under one name: ``at`` returns a client's, or None if it has none."""

    name: str
    at: Callable[[str | None], FederatedModel | None]

    def __call__(self, examples: TaskSet, client: str | None) -> Responses:
        """Return what the client's own model responds; nothing where it has none."""
        model = self.at(client)
        return {self.name: responses(model, examples)} if model is not None else {}


def constants(examples: TaskSet, client: str | None = None) -> Responses:
    """Return the same response to every example, for each of the task's constants; a predictor."""
    return trainable(examples.task).constants(examples)


@torch.inference_mode()
def responses(model: FederatedModel, examples: TaskSet) -> list[Json]:
    """Return what ``model`` responds to every example, in order."""
    model.eval()
    return trainable(examples.task).respond(model, examples)


def watch(study: Study, examples: TaskSet, predictor: Predictor) -> dict[str, float | None]:
    """Return the watched metrics of the development set; None where one is not defined."""
    task = trainable(examples.task)
    scorer = SCORERS[task.metric_kind]
    (given,) = predictor(examples, None).values()
    points = scorer.points(task.truths(examples), given)
    return {name: points[name] for name in ((scorer.primary,) if study.job == "benchmark" else WATCHED)}


def task_facts(study: Study, task: Task) -> TaskFacts:
    """Return how a task of the study is scored."""
    role = "trained" if task.name in study.train else "unseen"
    return TaskFacts(title=task.title, role=role, kind=task.metric_kind, answers=task.answers)


def predict(
    run: RunFolder, task: Task, tests: Sequence[tuple[str | None, TaskSet]], predictors: Sequence[Predictor]
) -> None:
    """Write the predictions of one task, unless they are there. Raises RunError if there is no test example.

    ``tests`` are a client (None: all in one place) and its examples; ``predictors`` are in the order of the records.
    """
    if run.exists(prediction_file(task.name)):
        return
    if not tests:
        hint = "raise split.ratios' last number, or give more data"
        raise RunError("no client has a test example", where=f"task {task.name!r}", hint=hint)
    salt = id_salt(tests[0][1].data.index)
    lines: list[Prediction] = []
    for client, examples in tests:
        given: Responses = {}
        for predictor in predictors:
            given |= predictor(examples, client)
        lines += _lines(client, examples, given, salt)
    run.write_lines(lines, prediction_file(task.name))


def _lines(client: str | None, examples: TaskSet, given: Responses, salt: str) -> Iterator[Prediction]:
    questions = examples.labels.questions
    for number, truth in enumerate(examples.task.truths(examples)):
        optional: dict[str, Any] = {"client": client} if client is not None else {}
        optional |= {"question": questions[examples.rows[number]]} if questions else {}
        yield Prediction(
            example=hash_id(salt, examples.examples[number]),
            patient=hash_id(salt, examples.patients[number]),
            **optional,
            truth=truth,
            responses={model: finite(column[number]) for model, column in given.items()},
        )


def id_salt(index: pl.DataFrame) -> str:
    """Return a salt made of all ids of a dataset; nobody without the dataset can recompute it.

    Runs on the same data then share hashed ids, whatever their seed and partition: patients can be compared.
    """
    ids = sorted(f"{example}\x00{patient}" for example, patient in index.select("example", "patient").iter_rows())
    return hashlib.sha256("\x01".join(ids).encode()).hexdigest()


def hash_id(salt: str, identifier: str) -> str:
    """Return 16 hex digits that name ``identifier`` and cannot be traced back without the salt."""
    return hashlib.sha256(f"{salt}\x00{identifier}".encode()).hexdigest()[:16]
