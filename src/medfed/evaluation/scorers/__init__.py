"""The registry of scorers: a task's ``metric_kind`` names the one that scores its answers."""

from __future__ import annotations

from medfed.evaluation.scorers.base import Scorer
from medfed.evaluation.scorers.choice import Choice
from medfed.evaluation.scorers.likelihood import TextLikelihood
from medfed.evaluation.scorers.mask import Mask
from medfed.evaluation.scorers.multilabel import MultiLabel
from medfed.evaluation.scorers.ranking import Ranking
from medfed.evaluation.scorers.words import Generated, Questions

SCORERS: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        Choice(),
        Choice("examination", primary="accuracy"),
        TextLikelihood(),
        Choice("closed_vqa", primary="balanced_accuracy"),  # a constant answer has a high plain accuracy
        MultiLabel(),
        Generated(),
        Questions(),
        Mask(),
        Ranking(),
    )
}
"""Scorers by name. A further one is registered by adding it here."""
