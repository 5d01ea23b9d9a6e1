"""Knowledge of LLMs, without patients: examinations in the form that an LLM was taught, scored as any other task.

An option is chosen by the likelihood of its name, yes or no by that of the word. A text is measured by the mean
negative log-likelihood of its tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medfed.core.errors import StudyError
from medfed.core.progress import Reporter
from medfed.core.registry import unknown
from medfed.datasets.examinations import EXAMINATIONS, YES_NO, Examination, Question
from medfed.evaluation.score import score_run
from medfed.llm.language_model import LanguageModel
from medfed.records.schema import Json, Prediction, ScoreFile, TaskFacts

ALONE = "llm"
"""The name, in scores, of an LLM without adapters."""
TaskPredictions = tuple[str, TaskFacts, Sequence[Prediction]]
KINDS = {"accuracy": "examination", "auroc": "classification", "nll": "likelihood"}
"""Metric of an examination → the scorer of its answers."""


class Chosen(NamedTuple):
    """An examination, and some questions of it."""

    examination: Examination
    questions: Sequence[Question]


def choose(names: Sequence[str], roots: Sequence[Path], most: int) -> list[Chosen]:
    """Return at most ``most`` questions of every named set, always the same ones.

    Args:
        names: of sets; none takes every set that is found.
        roots: folders below which sets are looked for, the first one first.
        most: questions of a set.

    Raises:
        StudyError: there is no such set, or it is below no root.
        DataError: a file is not in the set's layout.
    """
    if wrong := [name for name in names if name not in EXAMINATIONS]:
        raise unknown(EXAMINATIONS, wrong[0], "examination")
    if missing := [root for root in roots if not root.is_dir()]:
        raise StudyError("no such folder", where=missing[0], hint="give the folder that holds the sets")
    chosen = []
    for examination in [EXAMINATIONS[name] for name in names] or list(EXAMINATIONS.values()):
        folder = next((place for root in roots or [Path()] if (place := examination.find(root))), None)
        if folder is not None:
            chosen.append(Chosen(examination, examination.sample(folder, most)))
        elif names:
            where, hint = ", ".join(map(str, roots)) or "no data root", f"its folder has {examination.marker}"
            raise StudyError(f"{examination.title} is not here", where=where, hint=hint)
    return chosen


def zero_shot(model: LanguageModel, chosen: Sequence[Chosen], reporter: Reporter) -> ScoreFile:
    """Ask an LLM without adapters, and score its answers with intervals and constants."""
    tasks = []
    for examination, questions in chosen:
        with reporter.phase(examination.title) as advance:
            tasks.append(examine({ALONE: model}, examination, questions, advance))
    return score_run(tasks, seed=0)


def examine(
    models: Mapping[str, LanguageModel],
    examination: Examination,
    questions: Sequence[Question],
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> TaskPredictions:
    """Return what every model answers, as :func:`medfed.evaluation.score.score_run` reads it.

    Args:
        models: by the name they have in the scores.
        examination: which set the questions are of.
        questions: of that set.
        advance: is given the parts done and their number, model by model.
    """
    given = {name: answers_of(model, examination, questions, advance) for name, model in models.items()}
    return table_of(examination, questions, given)


def table_of(
    examination: Examination, questions: Sequence[Question], responses: Mapping[str, Sequence[Json]]
) -> TaskPredictions:
    """Return what :func:`examine` does, from the ``responses`` of every model in the order of the questions."""
    facts = TaskFacts(
        title=examination.title, role="knowledge", kind=KINDS[examination.metric], answers=_answers(examination)
    )
    lines = [
        Prediction(
            example=(key := _hashed(f"{examination.name}/{one.id}")),
            patient=key,
            truth=_truth(examination, one),
            responses={name: column[row] for name, column in responses.items()},
        )
        for row, one in enumerate(questions)
    ]
    return examination.name, facts, lines


def answers_of(
    model: LanguageModel,
    examination: Examination,
    questions: Sequence[Question],
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> list[Json]:
    """Return one model's responses in the order of the questions: a probability per answer, or a text's NLL."""
    pairs, lead = [(one.text, answer) for one in questions for answer in one.answers], examination.lead
    values = iter(model.likelihoods(pairs, advance, lead))
    by_question = [np.array([next(values) for _ in one.answers]) for one in questions]
    if examination.metric == "nll":
        return [
            -float(row[0]) / model.num_tokens(one.answers[0]) for row, one in zip(by_question, questions, strict=True)
        ]
    shares = [np.exp(row - np.logaddexp.reduce(row)).tolist() for row in by_question]
    return [row[::-1] for row in shares] if examination.metric == "auroc" else shares


def _truth(examination: Examination, question: Question) -> Json:
    """Return the number of the right answer; of yes and no, 1 is yes."""
    if examination.metric == "nll":
        return question.answers[0]
    return 1 - question.right if examination.metric == "auroc" else question.right


def _answers(examination: Examination) -> tuple[str, ...]:
    """Return the answers by class index."""
    return {"accuracy": ("A", "B", "C", "D"), "auroc": YES_NO[::-1], "nll": ()}[examination.metric]


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
