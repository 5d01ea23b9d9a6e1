"""What the page shows of a file, as pictures the report knows: a PNG, twelve leads on ECG paper, series by the hour."""

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
from medfed.report.cards import line_picture, range_text, trace_picture
from medfed.report.names import number
from medfed.report.records import View
from medfed.report.svg import coordinate, tag
from medfed.runs.loaded import Samples
from medfed.study.study import Study

MAX_PIXELS, TRACE_POINTS = 768, 600
BAR_WIDTH, BAR_ROW, BAR_LEFT, BAR_RIGHT = 320.0, 20.0, 96.0, 52.0
"""Of a bar chart in user units: width, height of a row, room for names and for numbers."""
LONGEST_NAME, MOST_EXPERTS = 14, 16


@dataclass(frozen=True)
class Look:
    """What there is to see of the files.

    Attributes:
        image: a PNG in base64; empty without a picture.
        leads: title and trace of every ECG lead.
        lines: variable, line and range of every series that was measured more than once.
        once: variable and value of those measured once.
        notes: a sentence per modality on what the model gets of it.
    """

    image: str = ""
    leads: list[tuple[str, Markup]] = field(default_factory=list)
    lines: list[tuple[str, Markup, str]] = field(default_factory=list)
    once: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def look(study: Study, samples: Samples) -> Look:
    """Draw raw arrays by modality."""
    seen = Look(image=_png(samples["image"]) if "image" in samples else "")
    for name, raw in samples.items():
        modality = study.modality(name)
        if isinstance(modality, ImageModality):
            side = modality.size
            seen.notes.append(
                f"{raw.shape[1]} × {raw.shape[0]} pixels; the model sees the central square at {side} × {side}."
            )
        elif name == "ecg":
            seen.leads.extend(_leads(raw))
            seen.notes.append(f"{len(raw)} leads, {raw.shape[1] / RAW_HZ:g} s; a large box is 0.2 s and 0.5 mV.")
        elif isinstance(modality, TimeSeriesModality):
            views = _series(modality, raw)
            often = [view for view in views if _num_measured(view) > 1]
            seen.lines.extend((view.title, line_picture(view), range_text(view)) for view in often)
            seen.once.extend((view.title, range_text(view)) for view in views if _num_measured(view) == 1)
    if hours := [len(raw) for name, raw in samples.items() if isinstance(study.modality(name), TimeSeriesModality)]:
        seen.notes.append(f"{max(hours)} hours, {len(seen.lines) + len(seen.once)} variables measured.")
    return seen


def answer_bars(probabilities: dict[str, float]) -> Markup:
    """Draw the probability of every answer between 0 and 1, likeliest first."""
    ordered = sorted(probabilities.items(), key=lambda pair: -pair[1])
    rows = [(name, value, number(value, 2 if value >= 0.01 else 3)) for name, value in ordered]
    return _bars(rows, 1.0, "Probability of each answer")


def expert_bars(experts: Sequence[Weighted]) -> Markup:
    """Draw the weights of the experts, by their numbers, the heaviest as long as the chart is wide.

    Of more than :data:`MOST_EXPERTS` the heaviest are drawn.
    """
    ordered = sorted(experts[:MOST_EXPERTS], key=lambda one: one["expert"])
    rows = [(f"expert {one['expert']}", one["weight"], number(one["weight"], 2)) for one in ordered]
    return _bars(rows, max((one["weight"] for one in experts), default=1.0), "Weight of each expert")


def _bars(rows: Sequence[tuple[str, float, str]], top: float, what: str) -> Markup:
    room = BAR_WIDTH - BAR_LEFT - BAR_RIGHT
    marks: list[Markup] = []
    for place, (name, value, text) in enumerate(rows):
        y, width = place * BAR_ROW, max(room * value / top, 1.0)
        short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        hover = tag("title", f"{name}: {value:.4f}")
        marks.append(tag("text", tag("title", name), short, x=BAR_LEFT - 8, y=y + 14, class_="label end"))
        marks.append(tag("rect", x=BAR_LEFT, y=y + 4, width=room, height=BAR_ROW - 8, rx=2, class_="groove"))
        style = "bar fedkim" if value == max(row[1] for row in rows) else "bar faint"
        marks.append(tag("rect", hover, x=BAR_LEFT, y=y + 4, width=width, height=BAR_ROW - 8, rx=2, class_=style))
        marks.append(tag("text", text, x=BAR_LEFT + room + 8, y=y + 14, class_="label"))
    told = "; ".join(f"{name} {text}" for name, _, text in rows)
    box = f"0 0 {coordinate(BAR_WIDTH)} {coordinate(max(len(rows), 1) * BAR_ROW)}"
    return tag("svg", *marks, viewBox=box, role="img", aria_label=f"{what}: {told}", class_="chart bars")


def _png(grey: Float[np.ndarray, "row column"]) -> str:
    picture, file = Image.fromarray(eight_bits(np.asarray(grey, np.float32))), io.BytesIO()
    picture.thumbnail((MAX_PIXELS, MAX_PIXELS))
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _leads(signal: Shaped[np.ndarray, "lead time"]) -> list[tuple[str, Markup]]:
    step = max(1, signal.shape[1] // TRACE_POINTS)
    return [
        (lead, trace_picture(_view("trace", f"ECG, lead {lead}", "mV", values[::step], signal.shape[1] / RAW_HZ)))
        for lead, values in zip(LEADS, signal, strict=True)
    ]


def _series(modality: TimeSeriesModality, raw: Shaped[np.ndarray, "hour variable"]) -> list[View]:
    return [_view("line", name, "by hour", raw[:, column]) for column, name in enumerate(modality.variables)]


def _num_measured(view: View) -> int:
    return sum(value is not None for value in view.values)


def _view(kind: str, title: str, unit: str, values: Shaped[np.ndarray, " point"], seconds: float = 0.0) -> View:
    known = [round(float(value), 3) if np.isfinite(value) else None for value in values]
    return View.model_validate({"kind": kind, "title": title, "unit": unit, "values": known, "seconds": seconds})
