"""The model registry: one line per file; each has a tuple ``MODELS``."""

from medfed.models.base import ModelSpec
from medfed.registry import collect

MODELS: dict[str, type[ModelSpec]] = collect(
    (
        "medfed.models.multimodal",
        "medfed.models.symile",
        "medfed.models.rfnet",
        "medfed.models.blip",
    ),
    "MODELS",
)
