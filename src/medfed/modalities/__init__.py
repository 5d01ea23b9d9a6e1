"""The modality and encoder registries: one line per file; each has a tuple ``MODALITIES`` or ``ENCODERS``."""

from __future__ import annotations

from medfed.core.registry import collect
from medfed.modalities.base import Modality
from medfed.study.parts import EncoderSpec

MODALITIES: dict[str, Modality] = collect(
    (
        "medfed.modalities.image",
        "medfed.modalities.signal",
        "medfed.modalities.timeseries",
        "medfed.modalities.text",
        "medfed.modalities.labs",
        "medfed.modalities.volume",
    ),
    "MODALITIES",
)


ENCODERS: dict[str, type[EncoderSpec]] = collect(
    (
        "medfed.models.vision",
        "medfed.models.resnet",
        "medfed.models.convolution",
        "medfed.models.transformer",
        "medfed.models.language",
        "medfed.modalities.labs",
    ),
    "ENCODERS",
)
