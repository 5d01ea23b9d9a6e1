"""Put questions about files to a finished run: one at a time, or many in batches; the numbers are the same.

A closed question gets the probability of every answer. An answer in words has the geometric mean of its tokens'
probabilities. The mean says how sure the model was of its words, and does not shrink with their number. It is no
probability that the words are right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from medfed.ask.inputs import Kind, read_files
from medfed.ask.task_selection import QUESTION_MODALITY, Plan, plan
from medfed.core.errors import DataError
from medfed.llm.decoding import Words
from medfed.runs.loaded import LoadedRun, Samples

BATCH_SIZE = 64
"""Examples per forward."""


class Request(NamedTuple):
    """A question to a run: files by kind, and perhaps a task, a question, candidate answers."""

    files: Mapping[Kind, Path]
    task: str | None = None
    question: str | None = None
    answers: tuple[str, ...] = ()


class Case(NamedTuple):
    """A question about decoded files, which are samples as the model reads them."""

    plan: Plan
    samples: Samples


class Weighted(TypedDict):
    """An expert, numbered from 1, and its share of the mixture."""

    expert: int
    weight: float


class Answer(NamedTuple):
    """A run's answer: the likeliest of those compared, or the decoded text, which may be empty.

    ``task`` is the one whose descriptions chose the experts, the heaviest of which comes first.
    """

    task: str
    question: str
    answer: str
    probability: float | None
    """Of the answer; of a decoded one the geometric mean over its tokens, None if it is empty."""
    probabilities: dict[str, float] | None
    """Of every answer compared; None if the answer was decoded."""
    experts: list[Weighted]
    cut: bool = False
    """A decoded answer was still running at ``evaluation.max_new_tokens``."""


def ask(run: LoadedRun, request: Request) -> Answer:
    """Answer one question; raise MedfedError if a file or the question is not what it should be."""
    return answer_all(run, [prepared(run, request)])[0]


def prepared(run: LoadedRun, request: Request) -> Case:
    """Choose the task and decode the files; raise MedfedError if one or the question is not what it should be."""
    how = plan(run.study, list(request.files), request.task, request.question, request.answers)
    run.injector.injected.check(how.task)
    raw = dict(read_files(run.study, request.files))
    if QUESTION_MODALITY in how.task.modalities:
        raw[QUESTION_MODALITY] = np.frombuffer(how.question.encode(), np.uint8)
    try:
        return Case(how, {name: run.sample(name, raw[name]) for name in how.task.modalities if name in raw})
    except DataError as error:
        files = ", ".join(str(path) for path in request.files.values())
        raise DataError(error.what, where=files, hint=error.hint) from error


def answer_all(run: LoadedRun, cases: Sequence[Case]) -> list[Answer]:
    """Answer all ``cases``, in order; those that ask one task alike go through the model together."""
    groups: dict[tuple[object, bool], list[int]] = {}
    for place, case in enumerate(cases):
        groups.setdefault((case.plan.task, case.plan.closed), []).append(place)
    answers: dict[int, Answer] = {}
    for places in groups.values():
        for start in range(0, len(places), BATCH_SIZE):
            some = places[start : start + BATCH_SIZE]
            answers |= zip(some, _together(run, [cases[place] for place in some]), strict=True)
    return [answers[place] for place in range(len(cases))]


def _together(run: LoadedRun, cases: Sequence[Case]) -> list[Answer]:
    how = cases[0].plan
    samples, questions = [case.samples for case in cases], [case.plan.question for case in cases]
    experts = heaviest(run.experts(how.task))
    results: list[tuple[Words, float | None, dict[str, float] | None]]
    if how.closed:
        compared = [dict(zip(how.task.answers, row, strict=True)) for row in run.scores(how.task, samples, questions)]
        results = [(Words(max(row, key=row.__getitem__), cut=False), max(row.values()), row) for row in compared]
    else:
        parts = zip(samples, questions, run.answers(how.task, samples, questions), strict=True)
        results = [
            (answer, run.sureness(how.task, given, question, answer.text), None) for given, question, answer in parts
        ]
    return [
        Answer(how.name, question, answer.text, sure, row, experts, answer.cut)
        for question, (answer, sure, row) in zip(questions, results, strict=True)
    ]


def heaviest(weights: Sequence[float]) -> list[Weighted]:
    """Return the experts by weight, heaviest first; of equal ones the lower number."""
    order = sorted(range(len(weights)), key=lambda index: -weights[index])
    return [Weighted(expert=index + 1, weight=weights[index]) for index in order]
