"""The registry of scorers: a task's ``metric_kind`` names the one that scores its answers."""

from __future__ import annotations

from medfed.evaluation.scorers.base import Scorer
from medfed.evaluation.scorers.choice import Choice
from medfed.evaluation.scorers.means import Mask, Ranking
from medfed.evaluation.scorers.multilabel import MultiLabel
from medfed.evaluation.scorers.words import Generated, Questions

_VQA = Choice("closed_vqa", primary="balanced_accuracy")  # a constant answer has a high plain accuracy
_ALL: list[Scorer] = [Choice(), _VQA, MultiLabel(), Generated(), Questions(), Mask(), Ranking()]
SCORERS = {scorer.name: scorer for scorer in _ALL}
"""Scorers by name. A further one is registered by adding it here."""
