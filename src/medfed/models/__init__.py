"""The model registry: one line per file; each has a tuple ``MODELS``."""

from __future__ import annotations

from medfed.core.registry import collect
from medfed.study.parts import ModelSpec

MODELS: dict[str, type[ModelSpec]] = collect(
    (
        "medfed.models.multimodal",
        "medfed.models.contrastive",
        "medfed.models.rfnet",
        "medfed.models.blip",
    ),
    "MODELS",
)
