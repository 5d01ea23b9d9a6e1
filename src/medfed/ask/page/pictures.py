"""Pictures of a file on the page: a PNG, twelve leads on ECG paper, series by the hour."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Shaped
from markupsafe import Markup
from PIL import Image

from medfed.ask.asking import Weighted
from medfed.datasets.images import eight_bits
from medfed.modalities.image import ImageModality
from medfed.modalities.signal import LEADS, RAW_HZ
from medfed.modalities.timeseries import TimeSeriesModality
from medfed.report.charts import line_picture, share_bars, trace_picture
from medfed.report.text import number, range_text
from medfed.runs.loaded import Samples
from medfed.study.study import Study

MAX_PIXELS, TRACE_POINTS = 768, 600
MOST_EXPERTS = 16


@dataclass(frozen=True)
class Look:
    """The visible parts of the files: a picture, every ECG lead, and series by variable with their range."""

    image: str = ""
    """A PNG in base64; empty without a picture."""
    leads: list[tuple[str, Markup]] = field(default_factory=list)
    lines: list[tuple[str, Markup, str]] = field(default_factory=list)
    once: list[tuple[str, str]] = field(default_factory=list)
    """Series that were measured once, with their value."""
    notes: list[str] = field(default_factory=list)
    """A sentence per modality on what the model gets of it."""


def look(study: Study, samples: Samples) -> Look:
    """Draw raw arrays by modality."""
    seen = Look(image=_png(samples["image"]) if "image" in samples else "")
    for name, raw in samples.items():
        modality = study.modality(name)
        if isinstance(modality, ImageModality):
            given, side = f"{raw.shape[1]} × {raw.shape[0]} pixels", modality.size
            seen.notes.append(f"{given}; the model sees the central square at {side} × {side}.")
        elif name == "ecg":
            seen.leads.extend(_leads(raw))
            seen.notes.append(f"{len(raw)} leads, {raw.shape[1] / RAW_HZ:g} s; a large box is 0.2 s and 0.5 mV.")
        elif isinstance(modality, TimeSeriesModality):
            for column, variable in enumerate(modality.variables):
                values = _known(raw[:, column])
                measured, between = sum(value is not None for value in values), range_text(values)
                if measured > 1:
                    seen.lines.append((variable, line_picture(variable, values), between))
                elif measured:
                    seen.once.append((variable, between))
    if hours := [len(raw) for name, raw in samples.items() if isinstance(study.modality(name), TimeSeriesModality)]:
        seen.notes.append(f"{max(hours)} hours, {len(seen.lines) + len(seen.once)} variables measured.")
    return seen


def answer_bars(probabilities: dict[str, float]) -> Markup:
    """Draw the probability of every answer between 0 and 1, likeliest first."""
    ordered = sorted(probabilities.items(), key=lambda pair: -pair[1])
    rows = [(name, value, number(value, 2 if value >= 0.01 else 3)) for name, value in ordered]
    return share_bars(rows, 1.0, "Probability of each answer")


def expert_bars(experts: Sequence[Weighted]) -> Markup:
    """Draw the weights of the heaviest experts, by their numbers, the heaviest as long as the chart is wide."""
    ordered = sorted(experts[:MOST_EXPERTS], key=lambda one: one["expert"])
    rows = [(f"expert {one['expert']}", one["weight"], number(one["weight"], 2)) for one in ordered]
    return share_bars(rows, max((one["weight"] for one in experts), default=1.0), "Weight of each expert")


def _png(grey: Float[np.ndarray, "row column"]) -> str:
    picture, file = Image.fromarray(eight_bits(np.asarray(grey, np.float32))), io.BytesIO()
    picture.thumbnail((MAX_PIXELS, MAX_PIXELS))
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _leads(signal: Shaped[np.ndarray, "lead time"]) -> list[tuple[str, Markup]]:
    step, seconds = max(1, signal.shape[1] // TRACE_POINTS), signal.shape[1] / RAW_HZ
    traces = {lead: _known(values[::step]) for lead, values in zip(LEADS, signal, strict=True)}
    return [(lead, trace_picture(f"ECG, lead {lead}", trace, seconds, "mV")) for lead, trace in traces.items()]


def _known(values: Shaped[np.ndarray, " point"]) -> list[float | None]:
    return [round(float(value), 3) if np.isfinite(value) else None for value in values]
