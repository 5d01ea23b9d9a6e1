"""Score rows: constants beside every model, ids hashed, undefined values null, records that give the same back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from medfed.core.errors import RunError
from medfed.core.rng import numpy_rng
from medfed.evaluation.bootstrap import bootstrap_interval, paired_difference
from medfed.evaluation.evaluate import (
    TaskPredictions,
    hash_id,
    id_salt,
    prediction_records,
    predictions_from_records,
    score_rows,
)
from medfed.evaluation.metrics import BY_NAME, METRICS, score
from medfed.study.evaluation import EvaluationSettings

FAST = EvaluationSettings(num_resamples=100)
Rows = dict[tuple[str, str], dict]


def predictions(num_examples: int = 60, role: str = "trained", answers: tuple[str, ...] = ("No", "Yes")):
    rng = numpy_rng("predictions", num_examples)
    targets = rng.integers(0, len(answers), num_examples)
    models = ("fedkim", "federated") if role == "trained" else ("fedkim",)
    scores = {model: rng.dirichlet(np.ones(len(answers)), num_examples) for model in models}
    examples, patients = [f"e{n}" for n in range(num_examples)], [f"p{n // 2}" for n in range(num_examples)]
    return TaskPredictions("cd", role, answers, examples, patients, targets, scores)


def by_model_and_metric(rows: list[dict]) -> Rows:
    return {(row["model"], row["metric"]): row for row in rows}


def test_constants_stand_in_every_task_and_every_row_is_complete() -> None:
    for task in (predictions(), predictions(role="unseen"), predictions(answers=("A", "B", "C"))):
        rows = score_rows([task], 0, FAST)["rows"]
        constants = {f"always-{answer.lower()}" for answer in task.answers}
        assert {row["model"] for row in rows} == {*task.scores, *constants}
        assert len(rows) == len(METRICS) * (len(task.scores) + len(task.answers))
        assert all(row["single_class"] is (row["model"] in constants) for row in rows)
        assert all(row["reason"] for row in rows if row["value"] is None or row["ci_low"] is None)
        assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_many_answers_get_the_majority_as_their_constant() -> None:
    rows = score_rows([predictions(answers=tuple("ABCDEFG"))], 0, FAST)["rows"]
    assert {row["model"] for row in rows} == {"fedkim", "federated", "majority"}


def test_constants_score_what_can_be_said_beforehand() -> None:
    task = predictions()
    rows = by_model_and_metric(score_rows([task], 0, FAST)["rows"])
    prevalence = float((task.targets == 1).mean())
    print(f"prevalence {prevalence:.3f}: always-yes has precision and accuracy = prevalence, recall 1, AUROC 0.5")
    for metric, expected in (("precision", prevalence), ("accuracy", prevalence), ("recall", 1.0), ("auroc", 0.5)):
        assert rows["always-yes", metric]["value"] == pytest.approx(expected)
    assert rows["always-yes", "balanced_accuracy"]["value"] == 0.5
    assert rows["always-no", "f1"]["value"] == 0
    assert rows["always-no", "precision"]["reason"] == "a class was never predicted: 0/0 counted as 0"
    assert rows["always-yes", "auroc"]["ci_low"] == rows["always-yes", "auroc"]["ci_high"] == 0.5


def test_a_row_equals_the_single_metric_functions() -> None:
    task = predictions()
    result = score_rows([task], 5, FAST)
    rows = by_model_and_metric(result["rows"])
    differences = by_model_and_metric(result["differences"])
    key = (5, "cd", "bootstrap")
    for metric in METRICS:
        fedkim, federated = task.scores["fedkim"], task.scores["federated"]
        alone = bootstrap_interval(BY_NAME[metric.name], task.targets, fedkim, task.patients, *key, settings=FAST)
        row = rows["fedkim", metric.name]
        assert (row["ci_low"], row["ci_high"]) == (alone.low, alone.high)
        paired = paired_difference(metric, task.targets, fedkim, federated, task.patients, *key, settings=FAST)
        difference = differences["fedkim", metric.name]
        assert difference["value"] == paired.value
        assert (difference["ci_low"], difference["ci_high"]) == (paired.interval.low, paired.interval.high)
        assert difference["baseline"] == "federated"


def test_a_group_of_models_has_one_row_with_the_mean_and_the_worst() -> None:
    one = predictions()
    rng = numpy_rng("members")
    members = {f"local/client-{n}": rng.dirichlet(np.ones(2), len(one.targets)) for n in range(3)}
    grouped = replace(one, scores={**one.scores, **members})
    rows = by_model_and_metric(score_rows([grouped], 0, FAST)["rows"])
    assert not [model for model, _ in rows if "/" in model]
    for name, worst in (("auroc", min), ("brier", max)):
        values = [score(BY_NAME[name], one.targets, scores).value for scores in members.values()]
        assert rows["local", name]["value"] == pytest.approx(np.mean(values))
        assert rows["local", name]["worst"] == worst(values)
        assert rows["local", name]["ci_low"] < rows["local", name]["value"] < rows["local", name]["ci_high"]
    assert rows["fedkim", "auroc"] == by_model_and_metric(score_rows([one], 0, FAST)["rows"])["fedkim", "auroc"]


def test_the_salt_is_the_datasets_not_the_order_of_its_rows() -> None:
    index = pl.DataFrame({"example": ["e1", "e2"], "patient": ["p1", "p2"]})
    assert id_salt(index) == id_salt(index.reverse())
    assert id_salt(index) != id_salt(index.head(1))


def test_unseen_tasks_have_no_difference() -> None:
    assert score_rows([predictions(role="unseen")], 0, FAST)["differences"] == []


def test_a_nan_score_makes_that_model_null_and_leaves_the_others() -> None:
    task = predictions()
    task.scores["fedkim"][3] = math.nan
    result = score_rows([task], 0, FAST)
    rows = by_model_and_metric(result["rows"])
    assert rows["fedkim", "auroc"]["value"] is None
    assert rows["fedkim", "auroc"]["reason"] == "1 of 60 scores are NaN or infinite"
    assert rows["federated", "auroc"]["value"] is not None
    assert by_model_and_metric(result["differences"])["fedkim", "auroc"]["value"] is None
    assert prediction_records(task, "salt")[3]["scores"]["fedkim"] == [None, None]


def test_an_empty_or_one_class_test_set_is_null_with_reasons_not_an_error() -> None:
    for row in score_rows([predictions(0)], 0, FAST)["rows"]:
        assert row["value"] is None
        assert row["reason"] == "no examples"
    task = predictions()
    task.targets[:] = 0
    rows = by_model_and_metric(score_rows([task], 0, FAST)["rows"])
    assert rows["fedkim", "auroc"]["value"] is None
    assert rows["fedkim", "auroc"]["reason"] == "no example of class 1 among the targets"
    assert rows["fedkim", "accuracy"]["value"] is not None


def test_hashed_records_give_the_same_scores_bit_for_bit() -> None:
    task = predictions()
    records = json.loads(json.dumps(prediction_records(task, "salt")))
    again = predictions_from_records("cd", "trained", ("No", "Yes"), records)
    assert score_rows([again], 1, FAST) == score_rows([task], 1, FAST)


def test_no_raw_id_leaves_and_a_salt_unlinks_runs() -> None:
    text = json.dumps(prediction_records(predictions(), "salt"))
    assert '"e1"' not in text
    assert '"p1"' not in text
    assert len(hash_id("salt", "e1")) == 16
    assert hash_id("salt", "e1") == hash_id("salt", "e1") != hash_id("other", "e1")


def test_the_order_of_tasks_and_models_changes_no_number() -> None:
    task, other = predictions(), predictions(40)
    other = TaskPredictions("lod", *(getattr(other, name) for name in list(other.__dataclass_fields__)[1:]))
    swapped = TaskPredictions(
        *(getattr(task, name) for name in list(task.__dataclass_fields__)[:-1]), dict(reversed(task.scores.items()))
    )
    both = score_rows([other, swapped], 0, FAST)["rows"]
    assert by_model_and_metric(score_rows([task], 0, FAST)["rows"]) == by_model_and_metric(
        [row for row in both if row["task"] == "cd"]
    )


def test_shapes_that_do_not_fit_are_refused_by_name() -> None:
    task = predictions()
    with pytest.raises(RunError, match=r"task cd, model fedkim.*\(60, 3\), expected \(60, 2\)"):
        TaskPredictions(
            "cd", "trained", task.answers, task.examples, task.patients, task.targets, {"fedkim": np.zeros((60, 3))}
        )
    with pytest.raises(RunError, match="targets run from 0 to 2"):
        TaskPredictions("cd", "trained", task.answers, ["a", "b"], ["a", "b"], np.array([0, 2]), {})
    with pytest.raises(RunError, match="1 examples, 2 patients, 2 targets"):
        TaskPredictions("cd", "trained", task.answers, ["a"], ["a", "b"], np.array([0, 1]), {})
