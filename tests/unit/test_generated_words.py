"""What judges answers: exact match keeps the decimal point, yes/no questions are ranked by balanced accuracy."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.evaluation.scorers import SCORERS

ONE = np.ones((1, 4))


def test_exact_match_is_of_texts_and_f1_of_words() -> None:
    print("'1.5' is not '15'; case and blanks do not count; f1 of 'a b' and 'b c' is 1/2; empty is wrong")
    truths, responses = ["1.5", "Aspirin,  insulin", "left lung", "yes"], ["15", "aspirin, insulin", "lung base", ""]
    values = SCORERS["generation"].scored(truths, responses).values(ONE)
    assert values["exact_match"][0] == pytest.approx(1 / 4)
    assert values["token_f1"][0] == pytest.approx((1 + 1 + 0.5 + 0) / 4)  # words have no decimal point
    assert SCORERS["generation"].primary == "exact_match"


def test_weights_count_examples() -> None:
    weights = np.array([[1.0, 0.0], [1.0, 3.0], [0.0, 0.0]])
    exact = SCORERS["generation"].scored(["yes", "no"], ["yes", "yes"]).values(weights)["exact_match"]
    assert exact[:2].tolist() == [1.0, 0.25]
    assert np.isnan(exact[2])


def test_a_constant_answer_is_accurate_and_not_balanced() -> None:
    always_yes = [[0.1, 0.9]] * 4
    values = SCORERS["closed_vqa"].scored([1, 1, 1, 0], always_yes).values(ONE)
    assert values["accuracy"][0] == pytest.approx(0.75)
    assert values["balanced_accuracy"][0] == pytest.approx(0.5)
    assert SCORERS["closed_vqa"].primary == "balanced_accuracy"
    assert {metric.name for metric in SCORERS["closed_vqa"].metrics} == {
        metric.name for metric in SCORERS["classification"].metrics
    }
