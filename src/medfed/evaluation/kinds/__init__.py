"""The registry of metric kinds: how a benchmark task's responses are judged. One line per file, a tuple ``KINDS``."""

from __future__ import annotations

from importlib import import_module

from medfed.core.registry import by_name
from medfed.evaluation.kinds.base import Kind

KINDS: dict[str, Kind] = by_name(
    kind
    for module in (
        "medfed.evaluation.kinds.classification",
        "medfed.evaluation.kinds.retrieval",
        "medfed.evaluation.kinds.segmentation",
        "medfed.evaluation.kinds.multilabel",
        "medfed.evaluation.kinds.closed_vqa",
        "medfed.evaluation.kinds.generation",
    )
    for kind in import_module(module).KINDS
)
