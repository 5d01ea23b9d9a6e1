"""Rows of tasks tested at clients: pooled, per client, worst, with intervals; against scikit-learn and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medfed.core.rng import numpy_rng
from medfed.evaluation.responses import TaskResponses
from medfed.evaluation.score import score_task
from medfed.evaluation.scorers.base import MetricInfo
from medfed.evaluation.scorers.means import PerExample
from medfed.records.schema import Json, Prediction, ScoreRow, TaskFacts
from medfed.study.evaluation import EvaluationSettings

SETTINGS = EvaluationSettings(num_resamples=200)
Line = dict[str, Any]


class Halves(PerExample):
    name = "halves"
    metrics = (MetricInfo("good", "Good"), MetricInfo("bad", "Bad", higher_is_better=False))
    primary = "good"

    def numbers(self, truth: Json, response: Json) -> dict[str, float | None]:
        return {"good": None if response is None else response / truth, "bad": float(truth)}


def lines(count: int = 60) -> list[Line]:
    rng = numpy_rng("judge")
    found = []
    for number in range(count):
        truth = number % 2
        p = float(np.clip(0.5 + 0.3 * (truth - 0.5) + rng.normal(0, 0.2), 0.01, 0.99))
        flipped = 1 - p if number % 3 == 0 else p
        given = {"good": [1 - p, p], "poor": [1 - flipped, flipped], "always-no": [1.0, 0.0]}
        place = {"example": f"e{number}", "patient": f"p{number // 2}", "client": f"c{number % 3}"}
        found.append({**place, "truth": truth, "responses": given})
    return found


def scored(made: list[Line]) -> dict[tuple[str, str], ScoreRow]:
    task = TaskResponses.of("t", TaskFacts(answers=("No", "Yes")), [Prediction(**line) for line in made])
    rows, differences = score_task(task, 0, SETTINGS)
    assert differences == []
    return {(row.model, row.metric): row for row in rows}


def auroc(made: list[Line], model: str) -> float:
    return float(roc_auc_score([line["truth"] for line in made], [line["responses"][model][1] for line in made]))


def test_pooled_client_and_worst_values_are_scikit_learns() -> None:
    made = lines()
    rows = scored(made)
    row = rows["poor", "auroc"]
    assert row.value == pytest.approx(auroc(made, "poor"))
    for client in ("c0", "c1", "c2"):
        assert row.clients[client] == pytest.approx(auroc([line for line in made if line["client"] == client], "poor"))
    assert row.worst_client == "c0", "its answers are turned around"
    assert row.worst == row.clients["c0"] < 0.5  # type: ignore[operator]
    assert row.ci_low < row.value < row.ci_high  # type: ignore[operator]
    assert rows["good", "auroc"].value > row.value  # type: ignore[operator]
    assert rows["always-no", "auroc"].value == 0.5
    assert rows["always-no", "auroc"].single_class, "a constant says so whatever its name"
    assert ("always-yes", "auroc") not in rows, "the run's own constants are the only ones"
    assert (row.n, row.num_patients, row.num_positive) == (60, 30, None)
    brier = rows["poor", "brier"]
    assert brier.worst == max(brier.clients.values()), "lower is better"  # type: ignore[type-var]


def test_a_model_that_answers_some_examples_is_scored_on_those() -> None:
    """A local-only model gives no response where no client trains."""
    made = lines()
    whole = scored(made)
    for line in made:
        if line["client"] == "c0":
            del line["responses"]["poor"]
    rows = scored(made)
    row = rows["poor", "auroc"]
    assert row.value == pytest.approx(auroc([line for line in made if line["client"] != "c0"], "poor"))
    assert row.n == 40
    assert set(row.clients) == {"c1", "c2"}
    assert rows["good", "auroc"] == whole["good", "auroc"], "the others' numbers do not move"


def test_models_are_compared_where_both_answer_the_same_examples() -> None:
    made = lines()
    settings = EvaluationSettings(num_resamples=50, comparisons=(("good", "poor"),))

    def gaps() -> list[str]:
        task = TaskResponses.of("t", TaskFacts(answers=("No", "Yes")), [Prediction(**line) for line in made])
        return [row.metric for row in score_task(task, 0, settings)[1]]

    assert "auroc" in gaps()
    del made[0]["responses"]["poor"]
    assert gaps() == []


def test_an_undefined_metric_is_null_and_its_client_left_out_of_the_worst() -> None:
    made = [line | {"client": "one" if line["truth"] else "zero"} for line in lines(20)]
    made[0] = made[0] | {"client": "one"}
    row = scored(made)["good", "auroc"]
    assert row.clients["zero"] is None
    assert row.worst_client == "one"
    row = scored([line for line in made if line["truth"]])["good", "auroc"]
    assert row.value is row.worst is row.ci_low is None
    assert row.reason


def test_numbers_per_example_are_averaged_over_those_who_have_one() -> None:
    scorer = Halves()
    weights = np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0], [0.0, 0.0, 5.0]])
    values = scorer.scored([1, 2, 4], [1, 1, None]).values(weights)
    print("good: 1, 0.5, none → (1 + 0.5)/2; (2 · 0.5)/2; nobody")
    np.testing.assert_allclose(values["good"], [0.75, 0.5, np.nan])
    np.testing.assert_allclose(values["bad"], [7 / 3, 8 / 3, 4])
    assert scorer.points([], []) == {"good": None, "bad": None}
