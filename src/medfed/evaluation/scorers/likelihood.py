"""Text: how likely a model finds the reference answers."""

from __future__ import annotations

import math

from medfed.evaluation.scorers.base import MetricInfo, PerExample
from medfed.records.schema import Json


class TextLikelihood(PerExample):
    """Truth: the reference text (not read). Response: its mean negative log-likelihood per token, in nats."""

    name = "likelihood"
    metrics = (MetricInfo("nll", "Negative log-likelihood", higher_is_better=False, high=math.inf),)
    primary = "nll"

    def numbers(self, truth: Json, response: Json) -> dict[str, float | None]:
        """Return the example's mean negative log-likelihood."""
        return {"nll": float(response)}
