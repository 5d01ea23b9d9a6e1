"""Scores of answers in words: rows by part, constants, paired differences, and records that give the same rows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medfed.core.errors import RunError
from medfed.evaluation.answers import (
    AnswerPredictions,
    answer_records,
    answer_rows,
    answers_from_records,
    constant_answers,
)
from medfed.evaluation.evaluate import Row
from medfed.evaluation.scored import OpenTask, read_scored
from medfed.evaluation.text_metrics import TEXT_METRICS
from medfed.study.evaluation import EvaluationSettings

FAST = EvaluationSettings(num_resamples=200)
REFERENCES = ["Yes", "no", "yes", "No", "left lower lobe", "right lower lobe", "the left lower lobe", "axial"]
SAID = ["yes", "yes", "yes.", "", "left lobe", "right lower lobe", "left lower lobe", "coronal"]


def predictions(**changes: object) -> AnswerPredictions:
    targets = np.array([1, 0, 1, 0, -1, -1, -1, -1])
    chance = np.array([0.9, 0.6, 0.8, 0.2, 0.5, 0.5, 0.5, 0.5])
    fields: dict[str, object] = {
        "task": "asked",
        "role": "unseen",
        "options": ("No", "Yes"),
        "examples": [f"raw-example-{number}" for number in range(8)],
        "patients": [f"raw-patient-{number // 2}" for number in range(8)],
        "questions": [f"question {number}?" for number in range(8)],
        "references": REFERENCES,
        "closed": targets >= 0,
        "targets": targets,
        "answers": {"fedkim": SAID},
        "scores": {"fedkim": np.stack([1 - chance, chance], 1)},
    }
    return AnswerPredictions(**{**fields, **changes})  # type: ignore[arg-type]


def table(rows: list[Row]) -> dict[tuple[str, str, str], Row]:
    return {(row["model"], row["part"], row["metric"]): row for row in rows}


def test_values_by_part_are_the_means_worked_out_by_hand() -> None:
    rows = table(answer_rows([predictions()], 0, FAST)["rows"])
    # closed: "yes" right, "yes" wrong, "yes." right, nothing said wrong → 2 of 4
    assert rows["fedkim", "closed", "exact_match"]["value"] == pytest.approx(2 / 4)
    # open: left lobe / left lower lobe F1 = 2·2/5, then 1, 1 (the article does not count), 0
    assert rows["fedkim", "open", "token_f1"]["value"] == pytest.approx((4 / 5 + 2) / 4)
    assert rows["fedkim", "open", "exact_match"]["value"] == pytest.approx(2 / 4)
    assert rows["fedkim", "all", "token_f1"]["value"] == pytest.approx((2 + 4 / 5 + 2) / 8)
    assert [rows["fedkim", part, "rouge_l"]["n"] for part in ("all", "closed", "open")] == [8, 4, 4]
    for (model, part, metric), row in rows.items():
        if metric in TEXT_METRICS:
            assert row["ci_low"] <= row["value"] <= row["ci_high"], (model, part, metric)
            assert (row["signature"] is not None) == (metric == "sacrebleu")
            assert row["num_positive"] is None


def test_constants_are_chosen_per_part_with_the_references_known() -> None:
    rows = table(answer_rows([predictions()], 0, FAST)["rows"])
    assert rows["constant-best", "open", "token_f1"]["answer"] == "left lower lobe"
    # 1, 2·2/6, 1, 0 against the four open references
    assert rows["constant-best", "open", "token_f1"]["value"] == pytest.approx((2 + 2 / 3) / 4)
    assert rows["constant-best", "closed", "exact_match"]["value"] == pytest.approx(1 / 2)
    assert rows["constant-best", "all", "token_f1"]["single_class"]
    assert not rows["fedkim", "all", "token_f1"]["single_class"]
    assert rows["fedkim", "all", "token_f1"]["answer"] is None


def test_the_most_frequent_answer_need_not_be_the_best_one() -> None:
    references = ["none", "none", "left lobe", "left lung", "left heart"]
    # "none" is right twice (2 of 5); "left …" shares a word with three (1 + ½ + ½ = 2 of 5): the first in the alphabet
    assert constant_answers([*references, "left side"]) == {
        "constant-frequent": "none",
        "constant-best": "left heart",  # 1 + 3·½ = 2.5 against 2
    }
    assert constant_answers([]) == {}


def test_the_likelihood_of_yes_is_scored_on_yes_no_questions_alone() -> None:
    rows = table(answer_rows([predictions()], 0, FAST)["rows"])
    auroc = rows["fedkim", "closed", "auroc"]
    assert (auroc["value"], auroc["n"], auroc["num_positive"]) == (1.0, 4, 2)  # 0.9, 0.8 above 0.6, 0.2
    assert rows["fedkim", "closed", "balanced_accuracy"]["value"] == pytest.approx(3 / 4)
    assert ("fedkim", "all", "auroc") not in rows
    without = predictions(targets=np.full(8, -1))
    assert not [row for row in answer_rows([without], 0, FAST)["rows"] if row["metric"] == "auroc"]


def test_every_model_is_compared_with_the_best_constant_on_the_same_patients() -> None:
    found = answer_rows([predictions(answers={"fedkim": REFERENCES, "federated": SAID})], 0, FAST)
    rows = table(found["rows"])
    text = [row for row in found["differences"] if row["metric"] in TEXT_METRICS]
    assert {(row["model"], row["baseline"]) for row in text} == {
        ("fedkim", "constant-best"),
        ("federated", "constant-best"),
        ("fedkim", "federated"),
    }
    for row in text:
        left, right = (rows[row[side], row["part"], row["metric"]]["value"] for side in ("model", "baseline"))
        assert row["value"] == pytest.approx(left - right)
    same = answer_rows([predictions(answers={"fedkim": SAID, "federated": SAID})], 0, FAST)["differences"]
    zero = [row for row in same if row["baseline"] == "federated" and row["metric"] in TEXT_METRICS]
    assert {(row["value"], row["ci_low"], row["ci_high"]) for row in zero} == {(0.0, 0.0, 0.0)}, "paired"


def test_a_part_without_questions_is_null_with_a_reason() -> None:
    rows = table(answer_rows([predictions(closed=np.zeros(8, bool))], 0, FAST)["rows"])
    row = rows["fedkim", "closed", "token_f1"]
    assert (row["value"], row["ci_low"], row["n"], row["reason"]) == (None, None, 0, "no closed questions")
    assert ("constant-best", "closed", "token_f1") not in rows


def test_records_hide_ids_keep_texts_and_give_the_same_scores() -> None:
    before = predictions()
    records = json.loads(json.dumps(answer_records(before, "salt")))
    assert "raw-" not in json.dumps(records)
    assert [record["reference"] for record in records] == REFERENCES, "no reference is rewritten"
    again = answers_from_records("asked", "unseen", ("No", "Yes"), records)
    assert answer_rows([again], 3, FAST) == answer_rows([before], 3, FAST)


def test_a_missing_answer_is_an_error_that_names_the_task() -> None:
    with pytest.raises(RunError, match="asked"):
        predictions(answers={"fedkim": SAID[:-1]})


def test_a_comparison_sees_the_values_of_the_rows_and_reads_them_from_records() -> None:
    records = [json.loads(json.dumps(record)) for record in answer_records(predictions(), "salt")]
    task = read_scored("mr", "unseen", records)
    assert isinstance(task, OpenTask)
    rows = table(answer_rows([predictions()], 0, FAST)["rows"])
    for model in ("fedkim", "constant-best", "constant-frequent"):
        for measure in task.measures:
            assert task.value(model, measure).value == pytest.approx(rows[model, measure.part, measure.metric]["value"])
    assert not task.closed
    assert task.single_class("constant-best")
    assert not task.single_class("fedkim")


def test_weights_count_examples_in_a_comparison_and_an_empty_part_has_no_value() -> None:
    task = OpenTask(predictions())
    exact = next(m for m in task.measures if (m.metric, m.part) == ("exact_match", "closed"))
    weights = np.array([[3.0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]])
    first, second = task.weighted("fedkim", exact, weights)
    assert first == pytest.approx(3 / 4)
    assert np.isnan(second)
    none = OpenTask(predictions(closed=np.zeros(8, bool)))
    assert none.value("fedkim", exact).value is None
    assert none.value("fedkim", exact).reason == "no closed questions"
