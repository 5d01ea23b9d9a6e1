"""Metrics that are means over examples, and the two kinds of answer that have no others: masks and rankings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from math import inf
from statistics import fmean

import numpy as np
from jaxtyping import Float

from medfed.evaluation.scorers.base import MetricInfo, Replicates, Scored, Scorer, Values, Weights
from medfed.records.schema import Json

REGIONS = ("wt", "tc", "et")


class Means(Scored):
    """Metrics that are weighted means of a number per example; NaN where an example has none."""

    def __init__(self, columns: Mapping[str, Float[np.ndarray, " example"]], num_examples: int) -> None:
        self._columns, self.num_examples = columns, num_examples

    def values(self, weights: Weights) -> Values:
        """Return the means over the examples that have a number."""
        return {name: self.value(name, weights) for name in self._columns}

    def value(self, metric: str, weights: Weights) -> Replicates:
        """Return one metric's mean over the examples that have a number."""
        known = np.isfinite(self._columns[metric])
        total, summed = weights[:, known].sum(1), weights[:, known] @ self._columns[metric][known]
        mean: np.ndarray = np.divide(summed, total, out=np.full(len(weights), np.nan), where=total > 0)
        return mean


class PerExample(Scorer):
    """A scorer whose metrics are means over examples."""

    @abstractmethod
    def numbers(self, truth: Json, response: Json) -> dict[str, float | None]:
        """Return one example's number of every metric; None or NaN where it has none."""

    def scored(self, truths: Sequence[Json], responses: Sequence[Json]) -> Scored:
        """Return the numbers of all examples."""
        rows = [self.numbers(truth, response) for truth, response in zip(truths, responses, strict=True)]
        columns = {metric.name: np.array([row[metric.name] for row in rows], np.float64) for metric in self.metrics}
        return Means(columns, len(rows))


class Mask(PerExample):
    """Segmentation by region (WT, TC, ET of BraTS): Dice, IoU and HD95, each the mean over cases.

    A case in which only one of truth and prediction is empty has no HD95. It counts as the grid's diagonal, the worst
    there can be: were it left out, a model would gain by predicting nothing.

    Truth: voxels by region and the diagonal. Response: Dice, IoU and HD95 by region.
    """

    name = "segmentation"
    metrics = (
        MetricInfo("dice", "Dice"),
        *(MetricInfo(f"dice_{region}", f"Dice {region.upper()}") for region in REGIONS),
        *(MetricInfo(f"iou_{region}", f"IoU {region.upper()}") for region in REGIONS),
        *(MetricInfo(f"hd95_{region}", f"HD95 (mm) {region.upper()}", False, high=inf) for region in REGIONS),
    )
    primary = "dice"

    def numbers(self, truth: Json, response: Json) -> dict[str, float | None]:
        """Return the response's numbers, the missing distances filled in, and the mean Dice of the regions."""
        numbers = {metric.name: response[metric.name] for metric in self.metrics[1:]}
        known = {name: truth["diagonal_mm"] if number is None else number for name, number in numbers.items()}
        return {"dice": fmean(known[f"dice_{region}"] for region in REGIONS), **known}


class Ranking(PerExample):
    """Retrieval: how near the top of the candidates the right one stands.

    Chance depends on the number n of candidates, which differs between a client's test share and the whole test set.
    Accuracy is 1/n by chance, recall@k k/n, MRR (1 + 1/2 + … + 1/n)/n. The rank percentile is 0.5 by chance whatever n
    is, so it is the one to compare sets of different size by. A number is not defined where it could not have been
    wrong: of a single candidate, and recall@k of k candidates or fewer.

    Truth: the place of the right candidate (not read). Response: ``{"rank", "candidates"}``, rank 1 is best.
    ``listed_rank`` and ``listed_candidates`` are the rank among the candidates that a dataset's release lists. Accuracy
    among those is the number the Symile paper reports (ten candidates: chance 0.1). MRR ranks algorithms: accuracy sees
    the first place only, which on small test sets is a handful of examples.
    """

    name = "retrieval"
    metrics = (
        MetricInfo("mrr", "MRR"),
        MetricInfo("accuracy", "Accuracy"),
        MetricInfo("recall_at_5", "Recall@5"),
        MetricInfo("recall_at_10", "Recall@10"),
        MetricInfo("rank_percentile", "Rank percentile"),
        MetricInfo("listed_accuracy", "Accuracy, listed candidates"),
    )
    primary = "mrr"

    def numbers(self, truth: Json, response: Json) -> dict[str, float | None]:
        """Return one example's numbers; None where the task could not be failed."""
        rank, count = int(response["rank"]), int(response["candidates"])
        return {
            "mrr": 1 / rank if count > 1 else None,
            "accuracy": _within(1, rank, count),
            "recall_at_5": _within(5, rank, count),
            "recall_at_10": _within(10, rank, count),
            "rank_percentile": 1 - (rank - 1) / (count - 1) if count > 1 else None,
            "listed_accuracy": _within(1, response.get("listed_rank", 1), response.get("listed_candidates", 1)),
        }


def _within(k: int, rank: int, count: int) -> float | None:
    return float(rank <= k) if count > k else None
