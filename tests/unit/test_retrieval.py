"""Ranks with ties and absent modalities, the release's candidates, and the metrics of retrieval."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from medfed.core.catalog import TASKS
from medfed.core.torch_rng import torch_rng
from medfed.core.types import Batch
from medfed.datasets.base import Card
from medfed.datasets.decoded import Decoded
from medfed.evaluation.scorers import SCORERS
from medfed.tasks.base import Task, TaskSet
from medfed.tasks.retrieval import Retrieval, ranks

KIND = SCORERS["retrieval"]
NAMES = ("image", "ecg", "lab-percentiles")
every = pytest.mark.parametrize("name", ["symile", "symile-pairwise"])


class Given(nn.Module):
    """A model whose vectors are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, task: Task, batch: Batch) -> Tensor:
        return torch.stack([batch.inputs[name] for name in task.modalities], 1)


def retrieval(name: str) -> Retrieval:
    task = TASKS[name]
    assert isinstance(task, Retrieval)
    return task


def examples(
    task: Task, vectors: Tensor, present: Tensor | None = None, candidates: list[list[str]] | None = None
) -> TaskSet:
    ids = [f"e{number}" for number in range(len(vectors))]
    columns = {"example": ids, "patient": ids, "finding": pl.Series([1] * len(ids), dtype=pl.Int8)}
    index = pl.DataFrame(columns | ({"candidates": candidates} if candidates else {}))
    here = torch.ones(vectors.shape[:2], dtype=torch.bool) if present is None else present
    samples = {name: (vectors[:, k] * here[:, k, None]).float().numpy() for k, name in enumerate(NAMES)}
    card = Card(title="toy", version="1", licence="none", access="none", citation="none")
    data = Decoded("toy", card, index, samples, {name: here[:, k].numpy() for k, name in enumerate(NAMES)})
    return TaskSet(task, data, np.arange(len(ids)))


def random_vectors(count: int, dim: int = 6) -> Tensor:
    return torch.randn(count, 3, dim, generator=torch_rng("retrieval", count))


def test_a_rank_counts_ties_against_the_model() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 0.0], [5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 9.0]])
    assert ranks(scores, torch.arange(4)) == [1, 3, 4, 1]


def test_ranks_are_those_of_sorting() -> None:
    scores = torch.rand(30, 30, generator=torch_rng("ranks")).mul(10).round()  # many ties
    expected = []
    for own, row in enumerate(scores.tolist()):
        order = sorted(range(30), key=lambda place: (-row[place], place == own))  # own stands last among its equals
        expected.append(order.index(own) + 1)
    assert ranks(scores, torch.arange(30)) == expected


@every
def test_respond_ranks_the_own_film_by_the_papers_score(name: str) -> None:
    task, vectors = retrieval(name), random_vectors(7)
    answers = task.respond(Given(), examples(task, vectors))
    assert [answer["candidates"] for answer in answers] == [7] * 7
    for own, answer in enumerate(answers):
        _, ecg, labs = vectors[own]
        scores = [
            float((film * ecg * labs).sum() if name == "symile" else (film * ecg).sum() + (film * labs).sum())
            for film in vectors[:, 0]
        ]
        assert answer["rank"] == sorted(scores, reverse=True).index(scores[own]) + 1


@every
def test_a_collapsed_model_retrieves_nothing(name: str) -> None:
    task = retrieval(name)
    assert [a["rank"] for a in task.respond(Given(), examples(task, torch.ones(5, 3, 6)))] == [5] * 5


@every
def test_absent_modalities_are_borne(name: str) -> None:
    task, vectors = retrieval(name), random_vectors(6)
    present = torch.ones(6, 3, dtype=torch.bool)
    present[0, 0] = False  # its film
    present[1, 1] = False  # its ECG
    present[2, 1:] = False  # all there is to ask by
    answers = task.respond(Given(), examples(task, vectors, present))
    films = vectors[1:, 0]
    by_labs = (films @ vectors[1, 2]).tolist()
    assert answers[0]["rank"] == 6
    assert answers[1]["rank"] == sorted(by_labs, reverse=True).index(by_labs[0]) + 1
    assert answers[2]["rank"] == 5  # the five films tie; the absent one is below


@every
def test_the_release_candidates_are_honoured_if_all_are_there(name: str) -> None:
    task, vectors = retrieval(name), random_vectors(6)
    listed = [[f"e{own}", f"e{(own + 1) % 6}", f"e{(own + 3) % 6}"] for own in range(6)]
    whole = examples(task, vectors, candidates=listed)
    scores = task.similarities(Given(), whole)
    for own, answer in enumerate(task.respond(Given(), whole)):
        among = [float(scores[own, (own + step) % 6]) for step in (0, 1, 3)]
        assert answer["listed_rank"] == sorted(among, reverse=True).index(among[0]) + 1
        assert answer["listed_candidates"] == 3
    part = TaskSet(task, whole.data, np.array([0, 1, 3, 4]))
    assert [sorted(answer) for answer in task.respond(Given(), part)] == [["candidates", "rank"]] * 4


@every
def test_the_loss_is_a_function_of_the_batch(name: str) -> None:
    """Shuffles hang on the example ids, not on a random state; another order is another batch."""
    task, data = retrieval(name), examples(retrieval(name), random_vectors(8))
    batch, turned = data.batch(np.arange(8)), data.batch(np.arange(8)[::-1].copy())
    first, again, other = (float(task.loss(Given()(task, each), each)) for each in (batch, batch, turned))
    assert first == again
    assert (first == pytest.approx(other, rel=1e-5)) == (name == "symile-pairwise")


@every
@pytest.mark.parametrize("count", [1, 2])
def test_a_small_batch_has_a_finite_loss(name: str, count: int) -> None:
    task = retrieval(name)
    batch = examples(task, random_vectors(count)).batch(np.arange(count))
    assert np.isfinite(float(task.loss(Given()(task, batch), batch)))


def test_metrics_are_those_of_the_ranks() -> None:
    responses = [{"rank": rank, "candidates": 20} for rank in (1, 2, 6, 20)]
    weights = np.array([[1.0, 1, 1, 1], [0.0, 3, 0, 1]])
    values = KIND.scored([0] * 4, responses).values(weights)
    expected = {
        "accuracy": (1 / 4, 0),
        "recall_at_5": (2 / 4, 3 / 4),
        "recall_at_10": (3 / 4, 3 / 4),
        "mrr": ((1 + 1 / 2 + 1 / 6 + 1 / 20) / 4, (3 / 2 + 1 / 20) / 4),
        "rank_percentile": ((1 + 18 / 19 + 14 / 19 + 0) / 4, (3 * 18 / 19) / 4),
    }
    for name, numbers in expected.items():
        np.testing.assert_allclose(values[name], numbers, err_msg=name)
    assert np.isnan(values["listed_accuracy"]).all()
    assert KIND.primary in {metric.name for metric in KIND.metrics} == values.keys()


def test_what_cannot_be_failed_is_not_scored() -> None:
    values = KIND.scored([0, 0], [{"rank": 1, "candidates": 1}] * 2).values(np.ones((1, 2)))
    assert all(np.isnan(value).all() for value in values.values())
    values = KIND.scored([0], [{"rank": 2, "candidates": 5, "listed_rank": 1, "listed_candidates": 3}]).values(
        np.ones((1, 1))
    )
    assert np.isnan(values["recall_at_5"]).all()
    assert values["listed_accuracy"][0] == 1
    assert values["accuracy"][0] == 0


def test_chance_is_as_documented() -> None:
    """Ranks that are uniform over n candidates."""
    count = 12
    responses = [{"rank": rank, "candidates": count} for rank in range(1, count + 1)]
    values = KIND.scored([0] * count, responses).values(np.ones((1, count)))
    assert values["accuracy"][0] == pytest.approx(1 / count)
    assert values["recall_at_5"][0] == pytest.approx(5 / count)
    assert values["mrr"][0] == pytest.approx(sum(1 / rank for rank in range(1, count + 1)) / count)
    assert values["rank_percentile"][0] == pytest.approx(0.5)
