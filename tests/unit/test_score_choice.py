"""Rows of closed questions: constants among the models, undefined values null, hashed lines that give the same back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from medfed.core.errors import RunError, StudyError
from medfed.core.rng import numpy_rng
from medfed.evaluation.bootstrap import interval, resample_weights
from medfed.evaluation.metrics import BY_NAME, METRICS, score
from medfed.evaluation.responses import TaskResponses
from medfed.evaluation.score import score_run, score_task
from medfed.records.folder import RunFolder, prediction_file
from medfed.records.schema import Difference, Prediction, ScoreRow, TaskFacts, finite
from medfed.runs.predictors import hash_id, id_salt
from medfed.study.evaluation import EvaluationSettings

FAST = EvaluationSettings(num_resamples=100)


def responses(
    num_examples: int = 60, role: str = "trained", answers: tuple[str, ...] = ("No", "Yes"), task: str = "cd"
) -> TaskResponses:
    rng = numpy_rng("predictions", num_examples)
    truths = rng.integers(0, len(answers), num_examples).tolist()
    models = ("fedkim", "federated") if role == "trained" else ("fedkim",)
    given = {model: rng.dirichlet(np.ones(len(answers)), num_examples).tolist() for model in models}
    examples, patients = [f"e{n}" for n in range(num_examples)], [f"p{n // 2}" for n in range(num_examples)]
    facts = TaskFacts(role=role, answers=answers)  # type: ignore[arg-type]
    return TaskResponses(task, facts, examples, patients, None, truths, given)


def lines_of(task: TaskResponses, salt: str) -> list[Prediction]:
    return [
        Prediction(
            example=hash_id(salt, task.examples[row]),
            patient=hash_id(salt, task.patients[row]),
            truth=task.truths[row],
            responses={model: finite(column[row]) for model, column in task.responses.items()},
        )
        for row in range(len(task.examples))
    ]


def rows_of(task: TaskResponses, seed: int = 0) -> dict[tuple[str, str], ScoreRow]:
    return {(row.model, row.metric): row for row in score_task(task, seed, FAST)[0]}


def gaps_of(task: TaskResponses, seed: int = 0) -> dict[tuple[str, str], Difference]:
    return {(row.model, row.metric): row for row in score_task(task, seed, FAST)[1]}


def test_constants_are_in_every_task_and_every_row_is_complete() -> None:
    for task in (responses(), responses(role="unseen"), responses(answers=("A", "B", "C"))):
        rows, _ = score_task(task, 0, FAST)
        constants = {f"always-{answer.lower()}" for answer in task.facts.answers}
        assert {row.model for row in rows} == {*task.responses, *constants}
        assert len(rows) == len(METRICS) * (len(task.responses) + len(task.facts.answers))
        assert all(row.single_class is (row.model in constants) for row in rows)
        assert all(row.reason for row in rows if row.value is None or row.ci_low is None)
        assert {row.metric for row in rows if row.primary} == {"auroc"}


def test_many_answers_get_the_majority_as_their_constant() -> None:
    rows, _ = score_task(responses(answers=tuple("ABCDEFG")), 0, FAST)
    assert {row.model for row in rows} == {"fedkim", "federated", "majority"}


def test_constants_score_what_can_be_said_beforehand() -> None:
    task = responses()
    rows = rows_of(task)
    prevalence = float(np.mean(np.array(task.truths) == 1))
    print(f"prevalence {prevalence:.3f}: always-yes has precision and accuracy = prevalence, recall 1, AUROC 0.5")
    for metric, expected in (("precision", prevalence), ("accuracy", prevalence), ("recall", 1.0), ("auroc", 0.5)):
        assert rows["always-yes", metric].value == pytest.approx(expected)
    assert rows["always-yes", "balanced_accuracy"].value == 0.5
    assert rows["always-no", "f1"].value == 0
    assert rows["always-no", "precision"].reason == "a class was never predicted: 0/0 counted as 0"
    assert rows["always-yes", "auroc"].ci_low == rows["always-yes", "auroc"].ci_high == 0.5
    assert rows["always-yes", "auroc"].num_positive == sum(task.truths)


def test_a_row_is_the_metric_on_resampled_patients_and_a_difference_uses_the_same_ones() -> None:
    task = responses()
    rows, gaps = rows_of(task, 5), gaps_of(task, 5)
    targets = np.array(task.truths)
    fedkim, federated = (np.array(task.responses[model]) for model in ("fedkim", "federated"))
    (weights,) = resample_weights(task.patients, FAST.num_resamples, 5, "cd", "bootstrap")
    for metric in METRICS:
        a, b = (metric.weighted(targets, scores, weights) for scores in (fedkim, federated))
        alone, paired = interval(a, 30, FAST), interval(a - b, 30, FAST)
        row, gap = rows["fedkim", metric.name], gaps["fedkim", metric.name]
        assert row.value == score(metric, targets, fedkim).value
        assert (row.ci_low, row.ci_high) == (alone.low, alone.high)
        assert (gap.ci_low, gap.ci_high, gap.baseline) == (paired.low, paired.high, "federated")
        assert gap.value == row.value - rows["federated", metric.name].value  # type: ignore[operator]


def test_a_group_of_models_has_one_row_with_the_mean_and_the_worst() -> None:
    one = responses()
    rng = numpy_rng("members")
    members = {f"local/client-{n}": rng.dirichlet(np.ones(2), len(one.truths)).tolist() for n in range(3)}
    rows = rows_of(replace(one, responses={**one.responses, **members}))
    assert not [model for model, _ in rows if "/" in model]
    for name, worst in (("auroc", min), ("brier", max)):
        targets = np.array(one.truths)
        values = [score(BY_NAME[name], targets, np.array(scores)).value for scores in members.values()]
        row = rows["local", name]
        assert row.value == pytest.approx(np.mean(values))  # type: ignore[arg-type]
        assert row.worst == worst(values)  # type: ignore[type-var]
        assert row.ci_low < row.value < row.ci_high  # type: ignore[operator]
    assert rows["fedkim", "auroc"] == rows_of(one)["fedkim", "auroc"]


def test_the_salt_is_the_datasets_not_the_order_of_its_rows() -> None:
    index = pl.DataFrame({"example": ["e1", "e2"], "patient": ["p1", "p2"]})
    assert id_salt(index) == id_salt(index.reverse())
    assert id_salt(index) != id_salt(index.head(1))


def test_unseen_tasks_have_no_difference() -> None:
    assert score_task(responses(role="unseen"), 0, FAST)[1] == []


def test_a_nan_score_makes_that_model_null_and_leaves_the_others() -> None:
    task = responses()
    task.responses["fedkim"][3][0] = math.nan
    rows = rows_of(task)
    assert rows["fedkim", "auroc"].value is None
    assert rows["fedkim", "auroc"].reason == "1 of 60 scores are NaN or infinite"
    assert rows["federated", "auroc"].value is not None
    assert gaps_of(task)["fedkim", "auroc"].value is None
    assert lines_of(task, "salt")[3].responses["fedkim"][0] is None


def test_an_empty_or_one_class_test_set_is_null_with_reasons_not_an_error() -> None:
    for row in score_task(responses(0), 0, FAST)[0]:
        assert row.value is None
        assert row.reason == "no examples"
    task = responses()
    rows = rows_of(replace(task, truths=[0] * len(task.truths)))
    assert rows["fedkim", "auroc"].value is None
    assert rows["fedkim", "auroc"].reason == "no example of class 1 among the targets"
    assert rows["fedkim", "accuracy"].value is not None


def test_hashed_lines_on_disk_give_the_same_scores_bit_for_bit(tmp_path) -> None:
    task, run = responses(), RunFolder(tmp_path)
    run.write_lines(lines_of(task, "salt"), prediction_file("cd"))
    again = TaskResponses.of("cd", task.facts, run.predictions("cd"))
    assert score_task(again, 1, FAST) == score_task(task, 1, FAST)


def test_no_raw_id_leaves_and_a_salt_unlinks_runs() -> None:
    text = json.dumps([line.model_dump() for line in lines_of(responses(), "salt")])
    assert '"e1"' not in text
    assert '"p1"' not in text
    assert len(hash_id("salt", "e1")) == 16
    assert hash_id("salt", "e1") == hash_id("salt", "e1") != hash_id("other", "e1")


def test_the_order_of_tasks_and_models_changes_no_number() -> None:
    task, other = responses(), responses(40, task="lod")
    swapped = replace(task, responses=dict(reversed(task.responses.items())))
    both = score_run([(one.task, one.facts, lines_of(one, "")) for one in (other, swapped)], 0, FAST)
    assert list(both.tasks) == ["lod", "cd"]
    assert rows_of(task) == {(row.model, row.metric): row for row in both.rows if row.task == "cd"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"responses": {"fedkim": [[0.2, 0.3, 0.5]] * 60}}, "task cd: model fedkim: a response has 3 probabilities"),
        ({"truths": [0] * 59 + [2]}, "truths run from 0 to 2, allowed are 0 to 1"),
        ({"patients": ["p"]}, "60 examples, but 1 of patients"),
        ({"responses": {"fedkim": [[0.5, 0.5]]}}, "60 examples, but 1 of fedkim"),
    ],
)
def test_columns_that_do_not_fit_are_refused_by_name(changes: dict, message: str) -> None:
    with pytest.raises(RunError, match=message):
        replace(responses(), **changes)


def test_an_unknown_kind_of_answer_is_named_with_the_known_ones() -> None:
    with pytest.raises(StudyError, match="unknown kind of answer 'clasification'") as error:
        replace(responses(), facts=TaskFacts(kind="clasification"))
    assert str(error.value.hint).startswith("did you mean classification")
