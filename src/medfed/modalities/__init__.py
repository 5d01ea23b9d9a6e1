"""The modality and encoder registries: one line per file; each has a tuple ``MODALITIES`` or ``ENCODERS``."""

from medfed.modalities.base import EncoderSpec, Modality
from medfed.registry import collect

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
        "medfed.modalities.vision",
        "medfed.modalities.resnet",
        "medfed.modalities.conv",
        "medfed.modalities.transformer",
        "medfed.modalities.language",
        "medfed.modalities.labs",
    ),
    "ENCODERS",
)
