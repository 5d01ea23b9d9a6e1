"""Comparison over seeds: Holm and p by hand, few false stars without an effect, and a real effect found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfed.core.errors import RunError
from medfed.core.rng import numpy_rng
from medfed.evaluation.bootstrap import holm, over_seeds, resample_weights, stretched, two_sided_p
from medfed.evaluation.compare import compare_runs
from medfed.evaluation.metrics import METRICS
from medfed.records.folder import RunFolder
from medfed.records.schema import (
    ComparedDifference,
    ComparedRow,
    ComparisonFile,
    Prediction,
    ScoreFile,
    StudyFile,
    TaskFacts,
)
from medfed.study.evaluation import BootstrapSettings
from support.lazily import lazily

metrics = lazily("sklearn.metrics")
stats = lazily("scipy.stats")

QUICK = BootstrapSettings(num_resamples=400)
Scores = Mapping[str, np.ndarray]


def write_run(folder: Path, seed: int, tasks: Mapping[str, tuple[str, np.ndarray, Scores]], ids: str = "p") -> Path:
    """A finished run: task → (role, targets, model → probability of yes). Patients are shared by all seeds."""
    run = RunFolder(folder)
    roles = {role: tuple(name for name, parts in tasks.items() if parts[0] == role) for role in ("trained", "unseen")}
    run.write(StudyFile(seed=seed, train=roles["trained"], unseen=roles["unseen"]))
    facts = {name: TaskFacts(role=parts[0], answers=("No", "Yes")) for name, parts in tasks.items()}  # type: ignore
    run.write(ScoreFile(tasks=facts))
    for name, (_, targets, scores) in tasks.items():
        lines = [
            Prediction(
                example=f"{ids}-{name}-{row}",
                patient=f"{ids}-{name}-{row}",
                truth=int(target),
                responses={model: [1 - float(p[row]), float(p[row])] for model, p in scores.items()},
            )
            for row, target in enumerate(targets)
        ]
        run.write_predictions(name, lines)
    run.finish()
    return folder


def simulated(separation: float, targets: np.ndarray, *key: str | int) -> np.ndarray:
    """Probabilities whose logit is separated by ``separation`` standard deviations, with a seed effect in ``key``."""
    rng = numpy_rng("compare-test", *key)
    logit = rng.normal(size=len(targets)) + (separation + 0.1 * rng.normal()) * (targets - 0.5)
    return 1 / (1 + np.exp(-logit))


def two_labels(root: Path, strong: float, weak: float, num_seeds: int, tasks: tuple[str, ...]) -> ComparisonFile:
    folders, labels = [], []
    for label, separation in (("A", strong), ("B", weak)):
        for seed in range(num_seeds):
            content = {}
            for task in tasks:
                targets = np.arange(80) % 2
                fedkim = simulated(separation, targets, label, seed, task)
                federated = simulated(weak, targets, "baseline", seed, task)
                content[task] = ("trained", targets, {"fedkim": fedkim, "federated": federated})
            folders.append(write_run(root / f"{label}{seed}", seed, content))
            labels.append(label)
    return compare_runs(folders, labels, BootstrapSettings(num_resamples=2000))


def one(rows: Sequence[ComparedRow] | Sequence[ComparedDifference], **wanted: object) -> Any:
    (found,) = [row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())]
    return found


def test_holm_by_hand() -> None:
    print("p sorted 0.005 0.01 0.03 0.04, times 4 3 2 1 = 0.02 0.03 0.06 0.04; the last is raised to 0.06")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_by_hand() -> None:
    print("9 resamples, one at or below zero: 2 (1 + 1) / (9 + 1); none: 2 · 1 / 10; NaN counts in neither")
    nine = np.array([-0.1, 1, 2, 3, 4, 5, 6, 7, 8])
    assert two_sided_p(nine) == pytest.approx(0.4)
    assert two_sided_p(-nine) == pytest.approx(0.4)
    assert two_sided_p(np.append(np.abs(nine), np.nan)) == pytest.approx(0.2)
    assert two_sided_p(np.zeros(9)) == 1.0


def test_one_seed_draws_patients_only_and_equal_seeds_add_nothing() -> None:
    replicates = numpy_rng("r").normal(size=(1, 50))
    assert np.array_equal(over_seeds(replicates, [3]), replicates[0])
    same = np.repeat(replicates, 5, axis=0)
    assert np.allclose(over_seeds(same, range(5)), replicates[0])


def test_the_spread_over_seeds_is_that_of_a_t_interval() -> None:
    values = np.array([0.1, 0.4, 0.2, 0.9, 0.5])
    drawn = over_seeds(np.repeat(values[:, None], 40_000, axis=1), range(5))
    print("SE of a mean: s / √5 with the sample deviation s; stretched by t/z")
    assert drawn.std() == pytest.approx(
        values.std(ddof=1) / np.sqrt(5) * stats.t.ppf(0.975, 4) / stats.norm.ppf(0.975), rel=0.02
    )


@pytest.mark.parametrize(("seed_sd", "patient_sd"), [(1.0, 0.01), (0.01, 1.0), (0.15, 1.0)])
def test_without_an_effect_few_are_found(seed_sd: float, patient_sd: float) -> None:
    """Mean difference over 40 patients, the same at 5 seeds, with seed and patient effects but no effect on average."""
    num_experiments, found = 300, 0
    for number in range(num_experiments):
        rng = numpy_rng("null", number, str(seed_sd))
        gaps = seed_sd * rng.normal(size=(5, 1)) + patient_sd * rng.normal(size=40) + 0.1 * rng.normal(size=(5, 40))
        weights = next(iter(resample_weights([str(i) for i in range(40)], 300, "null", number)))
        replicates = gaps @ weights.T / weights.sum(1)
        found += two_sided_p(over_seeds(replicates, range(5))) < 0.05
    expected, error = 0.05, (0.05 * 0.95 / num_experiments) ** 0.5
    print(f"found {found} of {num_experiments}; at most {expected} + 3 · {error:.3f} expected")
    assert found / num_experiments <= expected + 3 * error


def test_no_star_without_an_effect(tmp_path: Path) -> None:
    result = two_labels(tmp_path, 1.0, 1.0, 5, ("cd", "lod", "ead", "mp"))
    assert [row for row in result.differences if row.significant] == []
    assert {row.num_seeds for row in result.differences} == {5}


def test_a_real_effect_has_a_star_from_five_seeds_on(tmp_path: Path) -> None:
    wanted = {"label": "A", "baseline_label": "B", "metric": "auroc", "task": "cd"}
    five = one(two_labels(tmp_path / "five", 3.0, 0.5, 5, ("cd",)).differences, **wanted)
    assert five.significant
    assert 0 < five.ci_low < five.value < five.ci_high
    four = one(two_labels(tmp_path / "four", 3.0, 0.5, 4, ("cd",)).differences, **wanted)
    assert not four.significant
    assert (four.num_seeds, four.p < 0.05) == (4, True)


def test_values_are_means_over_seeds_and_over_tasks(tmp_path: Path) -> None:
    result = two_labels(tmp_path, 2.0, 1.0, 2, ("cd", "lod"))
    targets = np.arange(80) % 2
    by_hand = {
        task: [metrics.roc_auc_score(targets, simulated(2.0, targets, "A", seed, task)) for seed in (0, 1)]
        for task in ("cd", "lod")
    }
    row = one(result.rows, label="A", model="fedkim", task="cd", metric="auroc")
    assert row.per_seed == pytest.approx(by_hand["cd"])
    assert row.value == pytest.approx(np.mean(by_hand["cd"]))
    mean = one(result.rows, label="A", model="fedkim", task="mean-trained", metric="auroc")
    assert mean.per_seed == pytest.approx(np.mean(list(by_hand.values()), axis=0))
    assert result.seeds == {"A": (0, 1), "B": (0, 1)}
    assert one(result.rows, label="A", model="always-yes", task="cd", metric="auroc").single_class
    assert not row.single_class


def test_equal_predictions_differ_by_exactly_nothing(tmp_path: Path) -> None:
    targets = np.arange(40) % 2
    probabilities = simulated(1.0, targets, "same")
    content = {"cd": ("unseen", targets, {"fedkim": probabilities})}
    folders = [write_run(tmp_path / name, 0, content) for name in ("a", "b")]
    result = compare_runs(folders, ["A", "B"], QUICK)
    row = one(result.differences, metric="auroc", task="cd")
    assert (row.value, row.ci_low, row.ci_high, row.p) == (0, 0, 0, 1)


def test_runs_on_other_patients_are_not_paired(tmp_path: Path) -> None:
    targets = np.arange(40) % 2
    content = {"cd": ("trained", targets, {"fedkim": simulated(1.0, targets, "x")})}
    folders = [write_run(tmp_path / ids, 0, content, ids) for ids in ("p", "q")]
    row = one(compare_runs(folders, ["A", "B"], QUICK).differences, metric="auroc", task="cd")
    assert row.value is None
    assert row.reason.startswith("not paired")
    assert not row.significant


def test_a_group_has_the_mean_of_its_models(tmp_path: Path) -> None:
    targets = np.arange(40) % 2
    members = {f"local/client-{number}": simulated(1.0, targets, "local", number) for number in range(3)}
    content = {"cd": ("trained", targets, {"fedkim": simulated(1.0, targets, "x"), **members})}
    rows = compare_runs([write_run(tmp_path / "run", 0, content)], ["A"], QUICK).rows
    values = [metrics.roc_auc_score(targets, probabilities) for probabilities in members.values()]
    row = one(rows, model="local", task="cd", metric="auroc")
    assert row.value == pytest.approx(np.mean(values))
    assert row.ci_low < row.value < row.ci_high
    assert not [row for row in rows if "/" in row.model]


def test_pairs_choose_what_is_compared(tmp_path: Path) -> None:
    targets = np.arange(40) % 2
    folders = [
        write_run(tmp_path / name, 0, {"cd": ("trained", targets, {"fedkim": simulated(1.0, targets, name)})})
        for name in "abc"
    ]
    found = compare_runs(folders, list("abc"), QUICK, pairs=[("b", "c")]).differences
    assert {(row.label, row.baseline_label) for row in found} == {("b", "c")}
    found = compare_runs(folders, list("abc"), QUICK).differences
    assert {(row.label, row.baseline_label) for row in found} == {("a", "b"), ("a", "c")}


def test_an_unfinished_run_and_a_seed_twice_are_named(tmp_path: Path) -> None:
    targets = np.arange(10) % 2
    content = {"cd": ("trained", targets, {"fedkim": simulated(1.0, targets, "x")})}
    folders = [write_run(tmp_path / name, 0, content) for name in "ab"]
    with pytest.raises(RunError, match="two runs have one seed"):
        compare_runs(folders, ["A", "A"], QUICK)
    (folders[0] / "DONE").unlink()
    with pytest.raises(RunError, match="not a finished run"):
        compare_runs(folders, ["A", "B"], QUICK)


RANGES = {(metric.low, metric.high) for metric in METRICS} | {(0.0, 2.0), (0.0, 100.0), (0.0, np.inf)}


@pytest.mark.parametrize("bounds", sorted(RANGES))
def test_no_mean_over_seeds_leaves_the_metrics_range(bounds: tuple[float, float]) -> None:
    """Values near an edge and at it, few seeds and many, with and without undefined resamples."""
    low, high = bounds
    width = high - low if np.isfinite(high) else 50.0
    for number in range(200):
        rng = numpy_rng("range", str(bounds), number)
        count = int(rng.integers(2, 8))
        shape = float(10 ** rng.uniform(-2, 2))
        values = low + width * rng.beta(shape, 0.3 * shape + 0.01, size=(count, 300))
        values[:, rng.random(300) < 0.1] = low + width * float(rng.integers(0, 2))
        values[0, :5] = np.nan
        drawn = over_seeds(values, range(count), bounds)
        assert np.isnan(drawn[:5]).all()
        assert ((drawn[5:] >= low) & (drawn[5:] <= high)).all(), (bounds, number)


def test_the_stretch_keeps_the_middle_and_the_order() -> None:
    mean, drawn = np.full(5, 0.9), np.array([0.5, 0.85, 0.9, 0.95, 0.999])
    moved = stretched(mean, drawn, 1.6, (0.0, 1.0))
    print("odds 9 and 19 at 0.9 and 0.95: 9 · (19/9)^1.6 = 29.7, so 0.9674")
    assert moved[3] == pytest.approx(0.9674, abs=1e-4)
    assert moved[2] == pytest.approx(0.9)
    assert (np.diff(moved) > 0).all()
    assert moved[0] < 0.5 < moved[4] < 1


def test_every_seed_at_the_edge_stays_there() -> None:
    ones = np.ones((5, 100))
    assert (over_seeds(ones, range(5), (0.0, 1.0)) == 1).all()
    assert (over_seeds(-ones, range(5), (-1.0, 1.0)) == -1).all()


def test_near_perfect_scores_have_bounds_within_the_range(tmp_path: Path) -> None:
    result = two_labels(tmp_path, 6.0, 0.2, 5, ("cd",))
    rows = [row for row in result.rows if row.metric in ("auroc", "auprc", "accuracy") and row.label == "A"]
    assert max(row.ci_high for row in rows if row.ci_high is not None) <= 1
    assert any(row.ci_high is not None and row.ci_high > 0.99 for row in rows), "else the test says nothing"
    gaps = [row for row in result.differences if row.ci_high is not None]
    assert all(-2 <= row.ci_low <= row.ci_high <= 2 for row in gaps if row.metric == "mcc")
    assert all(-1 <= row.ci_low <= row.ci_high <= 1 for row in gaps if row.metric != "mcc")
