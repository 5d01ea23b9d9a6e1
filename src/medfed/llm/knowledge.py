"""Knowledge of LLMs, without patients: examinations in the form that an LLM was taught, scored as any other task.

An option is chosen by the likelihood of its name, yes or no by that of the word. A text is measured by the mean
negative log-likelihood of its tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from medfed.datasets.examinations import YES_NO, Examination, Question
from medfed.llm.language_model import LanguageModel
from medfed.records.schema import Json, Prediction, TaskFacts

TaskPredictions = tuple[str, TaskFacts, Sequence[Prediction]]
KINDS = {"accuracy": "examination", "auroc": "classification", "nll": "likelihood"}
"""Metric of an examination → the scorer of its answers."""


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
    responses = {name: _responses(model, examination, questions, advance) for name, model in models.items()}
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


def _responses(
    model: LanguageModel, examination: Examination, questions: Sequence[Question], advance: Callable[[int, int], None]
) -> list[Json]:
    values = iter(model.likelihoods([(one.text, answer) for one in questions for answer in one.answers], advance))
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
