"""Rows of answers in words: by part, constants, paired differences, and lines on disk that give the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medfed.core.errors import RunError
from medfed.evaluation.responses import TaskResponses
from medfed.evaluation.score import score_task
from medfed.evaluation.scorers.words import constant_answers
from medfed.evaluation.text_metrics import TEXT_METRICS
from medfed.records.folder import RunFolder, prediction_file
from medfed.records.schema import Difference, Prediction, ScoreRow
from support.worded_answers import ANSWERS, FACTS, FAST, REFERENCES, worded


def rows_of(task: TaskResponses) -> list[ScoreRow]:
    return score_task(task, 0, FAST)[0]


def gaps_of(task: TaskResponses) -> list[Difference]:
    return score_task(task, 0, FAST)[1]


def table(rows: Sequence[ScoreRow]) -> dict[tuple[str, str | None, str], ScoreRow]:
    return {(row.model, row.part, row.metric): row for row in rows}


def test_values_by_part_are_the_means_worked_out_by_hand() -> None:
    rows = table(rows_of(worded()))
    # closed: "yes" right, "yes" wrong, "yes." right, nothing said wrong → 2 of 4
    assert rows["fedkim", "closed", "exact_match"].value == pytest.approx(2 / 4)
    # open: left lobe / left lower lobe F1 = 2·2/5, then 1, 1 (the article does not count), 0
    assert rows["fedkim", "open", "token_f1"].value == pytest.approx((4 / 5 + 2) / 4)
    assert rows["fedkim", "open", "exact_match"].value == pytest.approx(2 / 4)
    assert rows["fedkim", "all", "token_f1"].value == pytest.approx((2 + 4 / 5 + 2) / 8)
    assert [rows["fedkim", part, "rouge_l"].n for part in ("all", "closed", "open")] == [8, 4, 4]
    for (model, part, metric), row in rows.items():
        if metric in TEXT_METRICS:
            assert row.ci_low <= row.value <= row.ci_high, (model, part, metric)
            assert (row.signature is not None) == (metric == "sacrebleu")
            assert row.num_positive is None


def test_constants_are_chosen_per_part_with_the_references_known() -> None:
    rows = table(rows_of(worded()))
    assert rows["constant-best", "open", "token_f1"].answer == "left lower lobe"
    # 1, 2·2/6, 1, 0 against the four open references
    assert rows["constant-best", "open", "token_f1"].value == pytest.approx((2 + 2 / 3) / 4)
    assert rows["constant-best", "closed", "exact_match"].value == pytest.approx(1 / 2)
    assert rows["constant-best", "all", "token_f1"].single_class
    assert not rows["fedkim", "all", "token_f1"].single_class
    assert rows["fedkim", "all", "token_f1"].answer is None


def test_the_most_frequent_answer_need_not_be_the_best_one() -> None:
    references = ["none", "none", "left lobe", "left lung", "left heart"]
    # "none" is right twice (2 of 5); "left …" shares a word with three (1 + ½ + ½ = 2 of 5): the first in the alphabet
    assert constant_answers([*references, "left side"]) == {
        "constant-frequent": "none",
        "constant-best": "left heart",  # 1 + 3·½ = 2.5 against 2
    }
    assert constant_answers([]) == {}


def test_the_likelihood_of_yes_is_scored_on_yes_no_questions_alone() -> None:
    rows = table(rows_of(worded()))
    auroc = rows["fedkim", "closed", "auroc"]
    assert (auroc.value, auroc.n, auroc.num_positive) == (1.0, 4, 2)  # 0.9, 0.8 above 0.6, 0.2
    assert rows["fedkim", "closed", "balanced_accuracy"].value == pytest.approx(3 / 4)
    assert ("fedkim", "all", "auroc") not in rows
    assert not [row for row in rows_of(worded(targets=[-1] * 8)) if row.metric == "auroc"]


def test_every_model_is_compared_with_the_best_constant_on_the_same_patients() -> None:
    task = worded({"fedkim": REFERENCES, "federated": ANSWERS})
    rows = table(rows_of(task))
    text = [row for row in gaps_of(task) if row.metric in TEXT_METRICS]
    assert {(row.model, row.baseline) for row in text} == {
        ("fedkim", "constant-best"),
        ("federated", "constant-best"),
        ("fedkim", "federated"),
    }
    for row in text:
        left, right = (rows[model, row.part, row.metric].value for model in (row.model, row.baseline))
        assert row.value == pytest.approx(left - right)  # type: ignore[operator]
    same = gaps_of(worded({"fedkim": ANSWERS, "federated": ANSWERS}))
    zero = [row for row in same if row.baseline == "federated" and row.metric in TEXT_METRICS]
    assert {(row.value, row.ci_low, row.ci_high) for row in zero} == {(0.0, 0.0, 0.0)}, "paired"


def test_a_part_without_questions_is_null_with_a_reason() -> None:
    rows = table(rows_of(worded(closed=[False] * 8)))
    row = rows["fedkim", "closed", "token_f1"]
    assert (row.value, row.ci_low, row.n, row.reason) == (None, None, 0, "no closed questions")
    assert ("constant-best", "closed", "token_f1") not in rows


def test_lines_on_disk_keep_texts_and_give_the_same_scores(tmp_path: Path) -> None:
    before, run = worded(), RunFolder(tmp_path)
    lines = [
        Prediction(
            example=before.examples[row],
            patient=before.patients[row],
            question=f"question {row}?",
            truth=before.truths[row],
            responses={model: column[row] for model, column in before.responses.items()},
        )
        for row in range(8)
    ]
    run.write_lines(lines, prediction_file("asked"))
    assert [line.truth["reference"] for line in run.predictions("asked")] == REFERENCES, "no reference is rewritten"
    again = TaskResponses.of("asked", FACTS, run.predictions("asked"))
    assert score_task(again, 3, FAST) == score_task(before, 3, FAST)


def test_a_missing_answer_is_an_error_that_names_the_task() -> None:
    with pytest.raises(RunError, match="asked"):
        worded({"fedkim": ANSWERS[:-1]})


def test_a_comparison_sees_the_values_of_the_rows() -> None:
    task = worded()
    rows = table(rows_of(task))
    for model in ("fedkim", "constant-best", "constant-frequent"):
        for part in ("all", "closed", "open"):
            for metric in TEXT_METRICS:
                assert task.score(model, part, metric).value == rows[model, part, metric].value
    assert task.single_class("constant-best", "all")
    assert not task.single_class("fedkim", "all")
    assert len(task.patients_of("closed")) == 4


def test_weights_count_examples_in_a_comparison_and_an_empty_part_has_no_value() -> None:
    weights = np.array([[3.0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]])
    first, second = worded().weighted("fedkim", "closed", "exact_match", weights)
    assert first == pytest.approx(3 / 4)
    assert np.isnan(second)
    none = worded(closed=[False] * 8).score("fedkim", "closed", "exact_match")
    assert (none.value, none.reason) == (None, "no closed questions")


def test_other_truths_are_another_sample() -> None:
    task = worded()
    other = [{**truth, "reference": "other"} for truth in task.truths]
    assert task.sample == worded({"federated": ANSWERS}).sample != replace(task, truths=other).sample
