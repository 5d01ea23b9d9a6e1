"""Patient bootstrap: the fast weighted metrics against a slow oracle, clusters, coverage, and withheld intervals."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.core.rng import numpy_rng
from medfed.evaluation.bootstrap import Interval, interval, patient_index, resample_weights
from medfed.evaluation.metrics import BY_NAME, METRICS, score
from medfed.study.evaluation import BootstrapSettings
from support.lazily import lazily

oracle = lazily("sklearn.metrics")


def simulated(num_examples: int, separation: float, *key: int | str) -> tuple[np.ndarray, np.ndarray]:
    rng = numpy_rng(*key)
    targets = rng.integers(0, 2, num_examples)
    logits = np.round(rng.normal(size=num_examples) + separation * targets, 1)  # rounding makes ties
    positive = 1 / (1 + np.exp(-(logits - separation / 2)))
    return targets, np.stack([1 - positive, positive], 1)


def interval_of(metric, targets, scores, patients, *key, settings=None) -> Interval:
    """The interval of a metric by resampling ``patients``, one id per example."""
    settings = settings or BootstrapSettings()
    chunks = resample_weights(patients, settings.num_resamples, *key)
    values = np.concatenate([metric.weighted(targets, scores, weights) for weights in chunks])
    return interval(values, len(set(patients)), settings)


def slow_calibration_error(targets: np.ndarray, positive: np.ndarray) -> float:
    total = 0.0
    for low in range(15):
        inside = np.minimum((positive * 15).astype(int), 14) == low
        if inside.any():
            total += inside.mean() * abs(targets[inside].mean() - positive[inside].mean())
    return total


ORACLES = {
    "auroc": lambda y, p: oracle.roc_auc_score(y, p),  # noqa: PLW0108 (imported when used)
    "auprc": lambda y, p: oracle.average_precision_score(y, p),  # noqa: PLW0108 (imported when used)
    "balanced_accuracy": lambda y, p: oracle.balanced_accuracy_score(y, p > 0.5),
    "accuracy": lambda y, p: oracle.accuracy_score(y, p > 0.5),
    "precision": lambda y, p: oracle.precision_score(y, p > 0.5, zero_division=0),
    "recall": lambda y, p: oracle.recall_score(y, p > 0.5),
    "f1": lambda y, p: oracle.f1_score(y, p > 0.5),
    "mcc": lambda y, p: oracle.matthews_corrcoef(y, p > 0.5),
    "brier": lambda y, p: oracle.brier_score_loss(y, p),  # noqa: PLW0108 (imported when used)
    "ece": slow_calibration_error,
}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_weighted_metric_equals_the_oracle_on_copied_examples(metric) -> None:
    targets, scores = simulated(60, 0.8, "oracle")
    patients = [f"p{number // 2}" for number in range(60)]
    weights = np.concatenate(list(resample_weights(patients, 25, 0, "oracle")))
    fast = metric.weighted(targets, scores, weights)
    for row, value in zip(weights.astype(int), fast, strict=True):
        copied_targets, copied_scores = np.repeat(targets, row), np.repeat(scores[:, 1], row)
        assert value == pytest.approx(ORACLES[metric.name](copied_targets, copied_scores), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_three_answers_weighted_equals_copied(metric) -> None:
    rng = numpy_rng("three")
    targets, scores = rng.integers(0, 3, 40), rng.dirichlet(np.ones(3), 40).round(2)
    scores /= scores.sum(1, keepdims=True)
    weights = np.concatenate(list(resample_weights([str(n) for n in range(40)], 10, 0, "three")))
    fast = metric.weighted(targets, scores, weights)
    for row, value in zip(weights.astype(int), fast, strict=True):
        copies = np.repeat(np.arange(40), row)
        assert value == pytest.approx(score(metric, targets[copies], scores[copies]).value, abs=1e-12)


def test_a_resample_keeps_all_examples_of_a_patient_together_and_the_number_of_patients() -> None:
    patients = ["a", "b", "a", "c", "b", "a"]
    for row in np.concatenate(list(resample_weights(patients, 50, 7))):
        a, b, c = row[0], row[1], row[3]
        assert (row == [a, b, a, c, b, a]).all()
        assert a + b + c == 3


def test_resamples_depend_on_the_key_only_not_on_chunks_or_the_spelling_of_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    patients = ["zoe", "adam", "zoe", "mia"]
    whole = np.concatenate(list(resample_weights(patients, 40, 3, "cd")))
    monkeypatch.setattr("medfed.evaluation.bootstrap.MAX_CHUNK_VALUES", 12)
    chunks = list(resample_weights(["x1", "y2", "x1", "z3"], 40, 3, "cd"))
    assert len(chunks) == 14
    assert (np.concatenate(chunks) == whole).all()
    assert (np.concatenate(list(resample_weights(patients, 40, 4, "cd"))) != whole).any()
    assert patient_index(patients).tolist() == [0, 1, 0, 2]


def test_repeating_a_patient_widens_the_interval() -> None:
    targets, scores = simulated(80, 1.0, "clusters")
    repeated_targets, repeated_scores = np.repeat(targets, 6), np.repeat(scores, 6, axis=0)
    rows = np.arange(480)
    by_patient = interval_of(BY_NAME["auroc"], repeated_targets, repeated_scores, [str(r // 6) for r in rows], 0)
    by_example = interval_of(BY_NAME["auroc"], repeated_targets, repeated_scores, [str(r) for r in rows], 0)
    ratio = (by_patient.high - by_patient.low) / (by_example.high - by_example.low)
    print(f"six copies of 80 patients carry the evidence of 80: the width grows by √6 = 2.45; got {ratio:.2f}")
    assert 2.0 < ratio < 3.0
    alone = interval_of(BY_NAME["auroc"], targets, scores, [str(r) for r in range(80)], 0)
    assert alone == pytest.approx(by_patient, abs=1e-12)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    print("60 patients with 3 correlated examples each, true accuracy 0.7: 95 % of the intervals should hold it")
    settings, covered = BootstrapSettings(num_resamples=300), 0
    for trial in range(200):
        rng = numpy_rng("coverage", trial)
        skill = rng.beta(7, 3, size=60)  # mean 0.7, differs between patients, so examples of one patient correlate
        right = rng.random((60, 3)) < skill[:, None]
        scores = np.stack([~right.ravel(), right.ravel()], 1).astype(float)
        patients = [str(row // 3) for row in range(180)]
        bounds = interval_of(
            BY_NAME["accuracy"], np.ones(180, int), scores, patients, "coverage", trial, settings=settings
        )
        covered += bounds.low <= 0.7 <= bounds.high
    print(f"covered {covered} of 200; binomial spread ±{2 * np.sqrt(200 * 0.95 * 0.05):.0f}")
    assert 178 <= covered <= 199


def test_undefined_resamples_are_dropped_counted_and_withhold_the_interval_when_many() -> None:
    targets = np.array([1] + [0] * 29)
    positive = np.linspace(0.9, 0.1, 30)
    patients = [str(row) for row in range(30)]
    bounds = interval_of(BY_NAME["auroc"], targets, np.stack([1 - positive, positive], 1), patients, 0)
    print("the one positive patient is missing from (29/30)^30 = 36 % of the resamples")
    assert bounds.low is None
    assert bounds.high is None
    assert bounds.reason is not None
    assert 300 < int(bounds.reason.split()[-4]) < 420
    few = interval(np.array([np.nan] + [0.5] * 99), 30)
    assert few == (0.5, 0.5, None)


def test_one_patient_gives_no_interval() -> None:
    targets, scores = simulated(20, 1.0, "lonely")
    bounds = interval_of(BY_NAME["accuracy"], targets, scores, ["p"] * 20, 0)
    assert bounds.low is None
    assert bounds.reason == "no interval: fewer than two patients"


def test_paired_difference_is_narrower_than_two_separate_intervals_and_zero_for_equals() -> None:
    targets, scores = simulated(300, 1.0, "paired")
    worse = scores[:, 1] + numpy_rng("noise").normal(scale=0.08, size=300)
    other = np.stack([1 - worse, worse], 1)
    patients = [str(row) for row in range(300)]
    (weights,) = resample_weights(patients, 1000, 0)
    here, there = (BY_NAME["auroc"].weighted(targets, given, weights) for given in (scores, other))
    assert interval(here - here, 300) == (0.0, 0.0, None)
    difference = interval(here - there, 300)
    alone = interval_of(BY_NAME["auroc"], targets, scores, patients, 0)
    width = difference.high - difference.low
    print(f"both see the same patients: {width:.3f} against {alone.high - alone.low:.3f} for one model alone")
    assert width < 0.8 * (alone.high - alone.low)
