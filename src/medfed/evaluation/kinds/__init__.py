"""The registry of metric kinds: how a benchmark task's responses are judged. One line per file, a tuple ``KINDS``."""

from __future__ import annotations

from medfed.core.registry import collect
from medfed.evaluation.kinds.base import Kind

KINDS: dict[str, Kind] = collect(
    (
        "medfed.evaluation.kinds.classification",
        "medfed.evaluation.kinds.retrieval",
        "medfed.evaluation.kinds.segmentation",
        "medfed.evaluation.kinds.multilabel",
        "medfed.evaluation.kinds.closed_vqa",
        "medfed.evaluation.kinds.generation",
    ),
    "KINDS",
)
