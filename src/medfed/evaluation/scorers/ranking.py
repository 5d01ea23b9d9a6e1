"""Retrieval: how near the top of the candidates the right one stands.

Chance depends on the number n of candidates, which differs between a client's test share and the whole test set.
Accuracy is 1/n by chance, recall@k k/n, MRR (1 + 1/2 + … + 1/n)/n. The rank percentile is 0.5 by chance whatever n is,
so it is the one to compare sets of different size by. A number is not defined where it could not have been wrong: of a
single candidate, and recall@k of k candidates or fewer.
"""

from __future__ import annotations

from medfed.evaluation.scorers.base import MetricInfo, PerExample
from medfed.records.schema import Json


class Ranking(PerExample):
    """Truth: the place of the right candidate (not read). Response: ``{"rank", "candidates"}``, rank 1 is best.

    ``listed_rank`` and ``listed_candidates`` are the rank among the candidates that a dataset's release lists. Accuracy
    among those is the number the Symile paper reports (ten candidates: chance 0.1).

    MRR ranks algorithms: accuracy sees the first place only, which on small test sets is a handful of examples.
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
