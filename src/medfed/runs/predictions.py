"""Ask every model about the test examples, write down what it says, and score that (the pipeline's last step)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medfed.data.cohort import Cohort
from medfed.evaluation.answers import AnswerPredictions, answer_records, answer_rows, answers_from_records
from medfed.evaluation.evaluate import (
    MEMBER,
    Role,
    TaskPredictions,
    id_salt,
    prediction_records,
    predictions_from_records,
    score_rows,
)
from medfed.runs.folder import RunDir
from medfed.runs.predictors import InjectedPredictor, Predictor
from medfed.study.study import Study
from medfed.tasks.base import ClosedTask, Task
from medfed.tasks.question_answering import QuestionAnswering


def predict_task(run: RunDir, study: Study, cohort: Cohort, task: Task, predictors: Mapping[str, Predictor]) -> None:
    """Write the predictions of one task's test examples, unless they are there."""
    name = f"predictions/{task.name}.jsonl"
    if run.exists(name):
        return
    examples = cohort.test[task.name]
    scores = {model: ask(examples) for model, ask in predictors.items() if _can_answer(model, task, study, cohort)}
    predictions = TaskPredictions(
        task.name,
        role_of(study, task),
        task.answers,
        examples.examples,
        examples.patients,
        examples.targets.numpy(),
        scores,
    )
    run.write_records(name, prediction_records(predictions, salt=id_salt(examples.data.index)))


def _can_answer(model: str, task: Task, study: Study, cohort: Cohort) -> bool:
    """Whether ``model`` knows ``task``: the LLM is asked anything, a head its own task, a client what it has."""
    if model == "fedkim":
        return True
    client = model.partition(MEMBER)[2]
    return task.name in (cohort.clients[client] if client else study.train)


def answer_task(
    run: RunDir,
    study: Study,
    cohort: Cohort,
    task: QuestionAnswering,
    predictors: Mapping[str, InjectedPredictor],
) -> None:
    """Write the answers to one open task's test questions, unless they are there."""
    name = f"predictions/{task.name}.jsonl"
    if run.exists(name):
        return
    examples = cohort.test[task.name]
    rows, length = examples.rows, study.evaluation.max_new_tokens
    predictions = AnswerPredictions(
        task.name,
        role_of(study, task),
        task.answers,
        examples.examples,
        examples.patients,
        [task.questions(examples.data)[row] for row in rows],
        [task.references(examples.data)[row] for row in rows],
        task.closed(examples.data)[rows],
        examples.targets.numpy(),
        {model: predictor.answer(examples, length) for model, predictor in predictors.items()},
        {model: predictor(examples) for model, predictor in predictors.items()},
    )
    run.write_records(name, answer_records(predictions, salt=id_salt(examples.data.index)))


def role_of(study: Study, task: Task) -> Role:
    """Return whether the study trains on ``task``."""
    return "trained" if task.name in study.train else "unseen"


def score_predictions(run: RunDir, study: Study) -> dict[str, Any]:
    """Return the content of ``scores.json`` from the prediction files."""
    read = {
        task: (task.name, role_of(study, task), task.answers, run.read_records(f"predictions/{task.name}.jsonl"))
        for task in study.tasks
    }
    closed = [predictions_from_records(*parts) for task, parts in read.items() if isinstance(task, ClosedTask)]
    asked = [answers_from_records(*parts) for task, parts in read.items() if isinstance(task, QuestionAnswering)]
    found, answered = (
        score_rows(closed, study.seed, study.evaluation),
        answer_rows(asked, study.seed, study.evaluation),
    )
    return {name: found[name] + answered[name] for name in found}
