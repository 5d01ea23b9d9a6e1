"""Metric values against numbers derived by hand, and null with a reason where there is no value."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medfed.evaluation.metrics import BY_NAME, METRICS, reliability_curve, score, single_class


def binary(*probabilities: float) -> np.ndarray:
    positive = np.array(probabilities, dtype=float)
    return np.stack([1 - positive, positive], axis=1)


TARGETS = np.array([1, 1, 1, 0, 0, 0, 0, 0])
SCORES = binary(0.9, 0.6, 0.3, 0.8, 0.4, 0.3, 0.2, 0.1)

DERIVATIONS = {
    "accuracy": (6 / 8, "above 0.5: 0.9 0.6 0.8, so TP=2 FP=1 FN=1 TN=4; (2+4)/8"),
    "precision": (2 / 3, "TP/(TP+FP) = 2/3"),
    "recall": (2 / 3, "TP/(TP+FN) = 2/3"),
    "f1": (2 / 3, "2TP/(2TP+FP+FN) = 4/6"),
    "balanced_accuracy": ((2 / 3 + 4 / 5) / 2, "mean of 2/3 and 4/5"),
    "mcc": ((2 * 4 - 1 * 1) / math.sqrt(3 * 3 * 5 * 5), "(TP·TN − FP·FN)/√((TP+FP)(TP+FN)(TN+FP)(TN+FN)) = 7/15"),
    "auroc": (11.5 / 15, "0.9 beats 5, 0.6 beats 4, 0.3 beats 2 and ties 1: (5+4+2.5)/15"),
    "auprc": ((1 + 2 / 3 + 3 / 6) / 3, "precision at 0.9, 0.6, 0.3 is 1/1, 2/3, 3/6; each raises recall by 1/3"),
    "brier": (
        (0.01 + 0.16 + 0.49 + 0.64 + 0.16 + 0.09 + 0.04 + 0.01) / 8,
        "mean of (p − y)²: .1² .4² .7² .8² .4² .3² .2² .1²",
    ),
    "ece": (
        (0.1 + 0.4 + 0.4 + 0.8 + 0.4 + 0.2 + 0.1) / 8,
        "bins of 1/15: the two 0.3 share one, |1 − 0.6| = 0.4; else |y − p|: .1 .4 .8 .4 .2 .1; all over 8",
    ),
}


@pytest.mark.parametrize("name", [metric.name for metric in METRICS])
def test_value_equals_the_derivation(name: str) -> None:
    expected, derivation = DERIVATIONS[name]
    result = score(BY_NAME[name], TARGETS, SCORES)
    print(f"{name}: {derivation} = {expected:.6f}; got {result.value}")
    assert result.value == pytest.approx(expected, abs=1e-12)
    assert result.reason is None


@pytest.mark.parametrize("absent", [0, 1])
def test_one_class_absent_gives_null_with_a_reason_never_a_number(absent: int) -> None:
    targets = np.full(4, 1 - absent)
    for name in ("auroc", "auprc", "balanced_accuracy", "mcc"):
        result = score(BY_NAME[name], targets, binary(0.1, 0.4, 0.6, 0.9))
        assert result.value is None
        assert result.reason is not None
        assert f"class {absent}" in result.reason


def test_recall_and_f1_without_a_positive_are_null() -> None:
    targets = np.zeros(3, dtype=int)
    assert score(BY_NAME["recall"], targets, binary(0.1, 0.9, 0.2)).value is None
    assert score(BY_NAME["f1"], targets, binary(0.1, 0.9, 0.2)).value == 0  # one false positive: 0/(0+1+0)
    empty = score(BY_NAME["f1"], targets, binary(0.1, 0.2, 0.2))
    assert empty.value is None
    assert empty.reason is not None


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("name", [metric.name for metric in METRICS])
def test_a_score_that_is_not_finite_makes_every_metric_null(name: str, broken: float) -> None:
    scores = SCORES.copy()
    scores[2] = broken
    result = score(BY_NAME[name], TARGETS, scores)
    assert result.value is None
    assert result.reason == "1 of 8 scores are NaN or infinite"


def test_no_examples_is_null() -> None:
    for metric in METRICS:
        assert score(metric, np.zeros(0, dtype=int), np.zeros((0, 2))) == (None, "no examples")


def test_scores_that_are_not_probabilities_have_no_calibration_but_keep_their_ranking() -> None:
    logits = SCORES * 10
    assert score(BY_NAME["brier"], TARGETS, logits).value is None
    assert score(BY_NAME["ece"], TARGETS, logits).value is None
    assert score(BY_NAME["auroc"], TARGETS, logits).value == pytest.approx(11.5 / 15)


def test_precision_of_a_model_that_never_says_yes_is_0_and_says_why() -> None:
    never = binary(*[0.2] * 8)
    precision, mcc = score(BY_NAME["precision"], TARGETS, never), score(BY_NAME["mcc"], TARGETS, never)
    assert precision.value == mcc.value == 0
    assert precision.reason is not None
    assert "0/0" in precision.reason
    assert mcc.reason is not None
    assert single_class(never)
    assert not single_class(SCORES)
    print("all scores tie, so every pair counts one half: AUROC 0.5; AUPRC is the share of positives, 3/8")
    assert score(BY_NAME["auroc"], TARGETS, never).value == 0.5
    assert score(BY_NAME["auprc"], TARGETS, never).value == pytest.approx(3 / 8)


def test_a_tie_at_one_half_is_answered_with_the_lower_class() -> None:
    assert score(BY_NAME["accuracy"], np.array([0, 1]), binary(0.5, 0.5)).value == 0.5
    assert single_class(binary(0.5, 0.5))


def test_three_answers_are_averaged_one_against_the_rest() -> None:
    targets = np.array([0, 0, 1, 1, 2, 2])
    scores = np.eye(3)[[0, 1, 1, 1, 2, 0]] * 0.7 + 0.1
    print("recalls 1/2, 1, 1/2 → 2/3; precisions 1/2, 2/3, 1 → 13/18; F1 1/2, 4/5, 2/3 → 59/90; accuracy 4/6")
    assert score(BY_NAME["recall"], targets, scores).value == pytest.approx(2 / 3)
    assert score(BY_NAME["balanced_accuracy"], targets, scores).value == pytest.approx(2 / 3)
    assert score(BY_NAME["precision"], targets, scores).value == pytest.approx(13 / 18)
    assert score(BY_NAME["f1"], targets, scores).value == pytest.approx(59 / 90)
    assert score(BY_NAME["accuracy"], targets, scores).value == pytest.approx(4 / 6)
    print("AUROC: class 0 has pairs 2×4, its 0.8 beats 3 ties 1, its 0.1 ties 3: (3.5+1.5)/8; class 1 7/8; class 2 6/8")
    assert score(BY_NAME["auroc"], targets, scores).value == pytest.approx((5 / 8 + 7 / 8 + 6 / 8) / 3)
    print("Brier: a right answer costs 0.2² + 2·0.1² = 0.06, a wrong one 0.9² + 0.8² + 0.1² = 1.46; 4 right, 2 wrong")
    assert score(BY_NAME["brier"], targets, scores).value == pytest.approx((4 * 0.06 + 2 * 1.46) / 6)
    assert score(BY_NAME["mcc"], targets, scores).value == pytest.approx(
        (4 * 6 - 12) / math.sqrt((36 - 12) * (36 - 14))
    )


def test_reliability_curve_puts_1_into_the_last_bin_and_leaves_empty_bins_out() -> None:
    points = reliability_curve(np.array([1, 0, 1]), binary(1.0, 0.01, 0.03))
    assert points == [(pytest.approx(0.02), 0.5, 2), (1.0, 1.0, 1)]
