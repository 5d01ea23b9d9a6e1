"""The multi-label task and its metrics: unknown labels count nowhere; values agree with scikit-learn label by label."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch

from medfed.core.errors import StudyError
from medfed.core.types import Batch
from medfed.datasets.decoded import Decoded
from medfed.evaluation.scorers.multilabel import MultiLabel as MultiLabelScorer
from medfed.modalities.image import ImageModality
from medfed.modalities.text import TextModality
from medfed.models.multimodal import MultimodalModel
from medfed.study.encoders import ResNetMini, TextEncoderSpec
from medfed.study.parts import EncoderSpec
from medfed.study.study import study_of
from medfed.tasks.base import TaskSet
from medfed.tasks.multilabel import MultiLabel
from support.federated_toys import CARD, WORDS
from support.lazily import lazily

metrics = lazily("sklearn.metrics")

KIND = MultiLabelScorer()
NAN = float("nan")


def task() -> MultiLabel:
    return MultiLabel(
        name="m",
        title="m",
        dataset="toy",
        target="findings",
        modalities=("image", "report"),
        answers=("one", "two", "three"),
        **WORDS,
    )


def examples() -> TaskSet:
    size = 4
    labels = {"one": [1, 0, None, None], "two": [0, 0, 1, None], "three": [None, 1, 1, None]}
    names = [f"e{number}" for number in range(size)]
    index = pl.DataFrame({"example": names, "patient": names}).with_columns(
        pl.Series(name, values, dtype=pl.Int8) for name, values in labels.items()
    )
    rng = np.random.default_rng(0)
    samples = {
        "image": rng.standard_normal((size, 1, 32, 32)).astype(np.float32),
        "report": rng.integers(1, 50, (size, 8)).astype(np.float32),
    }
    present = {"image": np.array([True, True, True, False]), "report": np.array([True, False, True, True])}
    data = Decoded("toy", CARD, index, samples, present)
    return TaskSet(task(), data, np.flatnonzero(task().usable(data)))


def test_an_example_counts_if_any_label_is_known() -> None:
    assert examples().examples == ["e0", "e1", "e2"]
    assert examples().targets.tolist() == [[1, 0, -1], [0, 0, 1], [-1, 1, 1]]
    assert task().truths(examples()) == [[1, 0, None], [0, 0, 1], [None, 1, 1]]
    assert task().counts(examples()) == {"one": 1, "two": 1, "three": 2}
    assert task().target_columns == ("one", "two", "three")


def test_the_loss_is_the_mean_over_known_labels() -> None:
    batch = examples().batch(np.array([0, 1]))
    outputs = torch.tensor([[2.0, -1.0, 50.0], [0.0, 3.0, 1.0]], requires_grad=True)

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    parts = [softplus(-2), softplus(-1), softplus(0), softplus(3), softplus(-1)]
    print("known: (2, yes) (−1, no) (0, no) (3, no) (1, yes); the output 50 stands at an unknown label")
    loss = task().loss(outputs, batch)
    assert float(loss) == pytest.approx(sum(parts) / 5, rel=1e-6)
    loss.backward()
    assert outputs.grad is not None
    assert outputs.grad[0, 2] == 0
    assert (outputs.grad != 0).sum() == 5


@pytest.mark.parametrize("output", [0.0, 1e30])
def test_a_batch_without_a_known_label_has_loss_zero_and_no_gradient(output: float) -> None:
    outputs = torch.full((2, 3), output, requires_grad=True)
    batch = Batch({}, {}, torch.full((2, 3), -1))
    loss = task().loss(outputs, batch)
    loss.backward()
    assert float(loss) == 0
    assert outputs.grad is not None
    assert not outputs.grad.any()


def test_the_image_text_model_answers_with_a_probability_per_label_whatever_is_missing() -> None:
    encoders: dict[str, EncoderSpec] = {"image": ResNetMini(), "report": TextEncoderSpec()}
    modalities = {"image": ImageModality(size=32), "report": TextModality(name="report", num_tokens=8)}
    model = MultimodalModel(encoders, modalities, (task(),)).eval()
    with torch.inference_mode():
        responses = task().respond(model, examples())
    assert [len(row) for row in responses] == [3, 3, 3]
    assert all(0 < value < 1 for row in responses for value in row)
    batch = examples().batch(np.array([1]))
    representations = model.representations(task(), batch)
    assert not representations["report"].any()
    assert representations["image"].any()


def test_a_study_benchmarks_it_and_does_not_inject_it() -> None:
    """Fourteen labels are not one question with one answer."""
    study = {
        "name": "s",
        "train": ["mimic-cxr"],
        "algorithm": "fedavg",
        "encoders": {"image": "resnet-mini", "report": "text-mini"},
    }
    assert study_of({**study, "job": "benchmark"}, "s").train_tasks[0].target_columns[0] == "atelectasis"
    with pytest.raises(StudyError, match='use job = "benchmark"'):
        study_of(study, "s")


def draw(seed: int, count: int = 60, labels: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Truths with unknown labels, and probabilities with ties, that know something."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((count, labels)) < rng.uniform(0.1, 0.6, labels)).astype(float)
    probability = np.clip(0.3 * truth + 0.7 * rng.random((count, labels)), 0, 1).round(2)
    truth[rng.random((count, labels)) < 0.2] = NAN
    return truth, probability


def as_json(truth: np.ndarray) -> list[list[int | None]]:
    return [[None if math.isnan(value) else int(value) for value in row] for row in truth]


def oracle(truth: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """scikit-learn, one label after the other."""
    scores: dict[str, list[float]] = {"macro_auroc": [], "macro_auprc": [], "macro_f1": []}
    for place in range(truth.shape[1]):
        known = ~np.isnan(truth[:, place])
        right, said = truth[known, place].astype(int), probability[known, place]
        if len(set(right)) < 2:
            continue
        scores["macro_auroc"].append(metrics.roc_auc_score(right, said))
        scores["macro_auprc"].append(metrics.average_precision_score(right, said))
        scores["macro_f1"].append(metrics.f1_score(right, said > 0.5, zero_division=0))
    means = {name: float(np.mean(values)) if values else NAN for name, values in scores.items()}
    return {**means, "num_labels": float(len(scores["macro_auroc"]))}


@pytest.mark.parametrize("seed", range(8))
def test_values_agree_with_scikit_learn(seed: int) -> None:
    truth, probability = draw(seed)
    values = KIND.scored(as_json(truth), probability.tolist()).values(np.ones((1, len(truth))))
    assert {name: float(value[0]) for name, value in values.items()} == pytest.approx(oracle(truth, probability))


def test_weights_are_repetitions() -> None:
    truth, probability = draw(1, count=40)
    weights = np.random.default_rng(2).integers(0, 3, (6, 40)).astype(float)
    values = KIND.scored(as_json(truth), probability.tolist()).values(weights)
    for replicate, row in enumerate(weights.astype(int)):
        repeated = oracle(np.repeat(truth, row, axis=0), np.repeat(probability, row, axis=0))
        assert {name: float(value[replicate]) for name, value in values.items()} == pytest.approx(repeated)


def test_a_label_of_one_class_only_is_left_out_and_the_count_says_so() -> None:
    truth = np.array([[1, 0, NAN], [0, 0, NAN], [1, 0, 1.0]])
    probability = np.array([[0.9, 0.9, 0.1], [0.2, 0.8, 0.1], [0.7, 0.7, 0.1]])
    values = KIND.scored(as_json(truth), probability.tolist()).values(np.ones((1, 3)))
    assert {name: float(value[0]) for name, value in values.items()} == {
        "macro_auroc": 1.0,
        "macro_auprc": 1.0,
        "macro_f1": 1.0,
        "num_labels": 1.0,
    }


def test_without_a_label_that_counts_there_is_no_value() -> None:
    values = KIND.scored([[1, None], [1, None]], [[0.9, 0.9], [0.2, 0.1]]).values(np.ones((2, 2)))
    assert all(np.isnan(values[name]).all() for name in ("macro_auroc", "macro_auprc", "macro_f1"))
    assert values["num_labels"].tolist() == [0, 0]


def test_a_score_that_is_not_a_number_is_never_ranked() -> None:
    values = KIND.scored([[1], [0]], [[NAN], [0.1]]).values(np.ones((1, 2)))
    assert all(np.isnan(value).all() for value in values.values())


def test_a_label_whose_class_has_no_weight_is_left_out_of_that_resample() -> None:
    truths, responses = [[1, 1], [0, 0], [0, 1]], [[0.9, 0.2], [0.1, 0.6], [0.2, 0.7]]
    weights = np.array([[1.0, 1, 1], [0, 1, 1]])
    values = KIND.scored(truths, responses).values(weights)
    print("all: label one 1.0, label two: 0.2 < 0.6 < 0.7 wins 1 of 2; without the first: label two 1.0 alone")
    assert values["num_labels"].tolist() == [2, 1]
    assert values["macro_auroc"].tolist() == [0.75, 1.0]
