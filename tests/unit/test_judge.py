"""Scores of a benchmark: pooled, per client, worst, with intervals; kinds against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medfed.core.rng import numpy_rng
from medfed.evaluation.judge import judged, point_values
from medfed.evaluation.kinds import KINDS
from medfed.evaluation.kinds.base import KindMetric, PerExample
from medfed.study.evaluation import EvaluationSettings
from medfed.tasks.base import Json

SETTINGS = EvaluationSettings(num_resamples=200)


class Halves(PerExample):
    name = "halves"
    metrics = (KindMetric("good", "Good"), KindMetric("bad", "Bad", higher_is_better=False))
    primary = "good"

    def numbers(self, truth: Json, response: Json) -> dict[str, float | None]:
        return {"good": None if response is None else response / truth, "bad": float(truth)}


def records(count: int = 60) -> list[dict[str, Json]]:
    rng = numpy_rng("judge")
    found = []
    for number in range(count):
        truth = number % 2
        p = float(np.clip(0.5 + 0.3 * (truth - 0.5) + rng.normal(0, 0.2), 0.01, 0.99))
        flipped = 1 - p if number % 3 == 0 else p
        said = {"good": [1 - p, p], "poor": [1 - flipped, flipped], "always-no": [1.0, 0.0]}
        found.append(
            {
                "example": f"e{number}",
                "patient": f"p{number // 2}",
                "client": f"c{number % 3}",
                "truth": truth,
                "responses": said,
            }
        )
    return found


def test_pooled_client_and_worst_values_are_scikit_learns() -> None:
    made = records()
    rows = {(row["model"], row["metric"]): row for row in judged("t", KINDS["classification"], made, 0, SETTINGS)}
    row = rows["poor", "auroc"]
    truths = [r["truth"] for r in made]
    assert row["value"] == pytest.approx(roc_auc_score(truths, [r["responses"]["poor"][1] for r in made]))
    for client in ("c0", "c1", "c2"):
        own = [r for r in made if r["client"] == client]
        expected = roc_auc_score([r["truth"] for r in own], [r["responses"]["poor"][1] for r in own])
        assert row["clients"][client] == pytest.approx(expected)
    assert row["worst_client"] == "c0", "its answers are turned around"
    assert row["worst"] == row["clients"]["c0"] < 0.5
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert rows["good", "auroc"]["value"] > row["value"]
    assert rows["always-no", "auroc"]["value"] == 0.5
    assert (row["n"], row["num_patients"]) == (60, 30)
    brier = rows["poor", "brier"]
    assert brier["worst"] == max(brier["clients"].values()), "lower is better"


def test_a_model_that_answers_some_examples_is_judged_on_those() -> None:
    """A local-only model, where no client trains, has nothing to say."""
    made = records()
    whole = {row["model"]: row for row in judged("t", KINDS["classification"], made, 0, SETTINGS) if row["primary"]}
    for record in made:
        if record["client"] == "c0":
            del record["responses"]["poor"]
    rows = {row["model"]: row for row in judged("t", KINDS["classification"], made, 0, SETTINGS) if row["primary"]}
    own = [r for r in made if r["client"] != "c0"]
    assert rows["poor"]["value"] == pytest.approx(
        roc_auc_score([r["truth"] for r in own], [r["responses"]["poor"][1] for r in own])
    )
    assert rows["poor"]["n"] == 40
    assert set(rows["poor"]["clients"]) == {"c1", "c2"}
    assert rows["good"] == whole["good"], "the others' numbers do not move"


def test_an_undefined_metric_is_null_and_its_client_left_out_of_the_worst() -> None:
    made = [r | {"client": "one" if r["truth"] else "zero"} for r in records(20)]
    made[0] = made[0] | {"client": "one"}
    row = next(row for row in judged("t", KINDS["classification"], made, 0, SETTINGS) if row["metric"] == "auroc")
    assert row["clients"]["zero"] is None
    assert row["worst_client"] == "one"
    only = [r for r in made if r["truth"]]
    row = next(row for row in judged("t", KINDS["classification"], only, 0, SETTINGS) if row["metric"] == "auroc")
    assert row["value"] is row["worst"] is row["ci_low"] is None
    assert row["reason"]


def test_numbers_per_example_are_averaged_over_those_who_have_one() -> None:
    kind = Halves()
    weights = np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0], [0.0, 0.0, 5.0]])
    values = kind.values([1, 2, 4], [1, 1, None], weights)
    print("good: 1, 0.5, none → (1 + 0.5)/2; (2 · 0.5)/2; nobody")
    np.testing.assert_allclose(values["good"], [0.75, 0.5, np.nan])
    np.testing.assert_allclose(values["bad"], [7 / 3, 8 / 3, 4])
    assert point_values(kind, [], []) == {"good": None, "bad": None}
