"""Yes or no: a classification ranked by balanced accuracy, since a constant answer has a high plain accuracy."""

from __future__ import annotations

from medfed.evaluation.kinds.base import Kind
from medfed.evaluation.kinds.classification import Classification

KINDS: tuple[Kind, ...] = (Classification("closed_vqa", primary="balanced_accuracy"),)
