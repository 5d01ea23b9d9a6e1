"""``cards.json``: two test examples per task as one would show them to a colleague, and what the injected LLM said.

The examples are drawn by (seed, task) before anything is known of their scores, so a card is no success story. What an
example looks like, what was asked of it and answered is written only if its dataset is a synthetic twin, or where the
user asked for it: the report of real data shows no single patient by default.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image

from medfed.core.rng import numpy_rng
from medfed.data.cohort import Cohort
from medfed.modalities.base import Modality
from medfed.modalities.image import ImageModality
from medfed.modalities.moments import Moments
from medfed.modalities.signal import LEADS, SignalModality
from medfed.modalities.timeseries import TimeSeriesModality
from medfed.runs.folder import RunDir
from medfed.tasks.base import Task, TaskSet

Row = dict[str, Any]
CARDS_PER_TASK = 2
NUM_EXPERTS_NAMED = 3
MAX_PIXELS = 96
TRACE_SECONDS, TRACE_LEAD, TRACE_POINTS = 5.0, "II", 250
LINES = {"vitals": ("hr", "map", "resp"), "labs": ("lact", "crea"), "input": ("fio2",), "output": ("urine",)}
"""The variables a card draws; of a modality not listed here, the first two."""
RULE = f"{CARDS_PER_TASK} test examples per task, drawn from (seed, task) whatever the models said about them"
WITHHELD = "Real patient data: the example is not written here. medfed run --show-examples writes it."


def example_cards(
    run: RunDir, tasks: Sequence[Task], cohort: Cohort, modalities: Mapping[str, Modality], seed: int, *, show: bool
) -> Row:
    """Return the content of ``cards.json``.

    Args:
        run: predictions and routing are read from here.
        tasks: in the order the report shows them.
        cohort: holds the test examples, normalised, and the moments that undo it.
        modalities: settings by name.
        seed: the run's seed.
        show: draw examples of real data too.
    """
    routing = run.read_records("injection/routing.jsonl")
    alpha = routing[-1]["alpha"] if routing else {}
    cards = []
    for task in tasks:
        records, examples = run.read_records(f"predictions/{task.name}.jsonl"), cohort.test[task.name]
        shown = show or examples.data.card.synthetic
        for position in chosen(seed, task.name, len(records)):
            views = _views(examples, position, modalities, cohort.moments) if shown else []
            experts = heaviest(alpha.get(task.name, []))
            said = answer_record(task, records[position]) if shown else {"task": task.name}
            withheld = None if shown else WITHHELD
            cards.append({**said, "experts": experts, "views": views, "withheld": withheld})
    return {"rule": RULE, "cards": cards}


def chosen(seed: int, task: str, num_examples: int) -> list[int]:
    """Return the positions of the examples that get a card: a pure function of its arguments."""
    size = min(CARDS_PER_TASK, num_examples)
    return [int(p) for p in numpy_rng(seed, task, "cards").choice(num_examples, size, replace=False)]


def heaviest(alpha: Sequence[float]) -> list[Row]:
    """Return the experts with the largest weights, numbered from 1, largest first."""
    order = sorted(range(len(alpha)), key=lambda index: -alpha[index])[:NUM_EXPERTS_NAMED]
    return [{"expert": index + 1, "weight": alpha[index]} for index in order]


def answer_record(task: Task, record: Mapping[str, Any]) -> Row:
    """Return question, gold answer and what the models said, from a line of the task's predictions.

    A closed task's line has ``target`` and ``scores`` by answer; an open task's has its own ``question``, the text
    ``reference`` and the decoded ``answers`` by model, and no probability of a free text.
    """
    texts = dict(record.get("answers", {}))
    scores = {} if texts else record["scores"]
    return {
        "task": task.name,
        "example": record["example"],
        "question": record.get("question") or task.question,
        "gold": record["reference"] if "reference" in record else task.answers[record["target"]],
        "probabilities": {model: dict(zip(task.answers, values, strict=True)) for model, values in scores.items()},
        "generated": texts,
    }


@singledispatch
def views_of(modality: object, sample: Shaped[np.ndarray, "*sample"]) -> list[Row]:
    """Return what to draw of one sample in physical units; a modality without a rule of its own is not drawn."""
    return []


@views_of.register
def _image(modality: ImageModality, sample: Float[np.ndarray, "1 row column"]) -> list[Row]:
    picture = Image.fromarray(np.round(255 * sample[0].clip(0, 1)).astype(np.uint8))
    picture.thumbnail((MAX_PIXELS, MAX_PIXELS))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return [{"kind": "image", "title": modality.name, "png": base64.b64encode(file.getvalue()).decode()}]


@views_of.register
def _trace(modality: SignalModality, sample: Float[np.ndarray, "lead time"]) -> list[Row]:
    lead = LEADS.index(TRACE_LEAD) if modality.num_leads == len(LEADS) else 0
    kept = sample[lead, : round(TRACE_SECONDS * modality.sampling_hz)]
    values = kept[:: max(1, len(kept) // TRACE_POINTS)]
    title = f"lead {TRACE_LEAD}" if modality.num_leads == len(LEADS) else "first lead"
    facts = {"kind": "trace", "title": f"{modality.name.upper()}, {title}", "unit": "mV"}
    return [{**facts, "seconds": len(kept) / modality.sampling_hz, "values": _rounded(values, 3)}]


@views_of.register
def _lines(modality: TimeSeriesModality, sample: Float[np.ndarray, "hour channel"]) -> list[Row]:
    names = [name for name in LINES.get(modality.name, modality.variables[:2]) if name in modality.variables]
    rows = []
    for name in names:
        column = modality.variables.index(name)
        observed = sample[:, len(modality.variables) + column] > 0
        values = np.where(observed, sample[:, column], np.nan)
        rows.append({"kind": "line", "title": name, "unit": "by hour", "values": _rounded(values, 2)})
    return rows


def _views(
    examples: TaskSet, position: int, modalities: Mapping[str, Modality], moments: Mapping[str, Moments]
) -> list[Row]:
    row, views = examples.rows[position], []
    for name in examples.task.modalities:
        if name in modalities and examples.data.present[name][row]:
            views += views_of(modalities[name], _physical(modalities[name], examples.data.samples[name][row], moments))
    return views


def _physical(
    modality: Modality, sample: Shaped[np.ndarray, "*sample"], moments: Mapping[str, Moments]
) -> Float[np.ndarray, "*sample"]:
    """Undo the normalisation: z-scores back to physical units; an ICU sample's flags stay as they are."""
    mean, std = moments[modality.name].mean, moments[modality.name].std
    if isinstance(modality, TimeSeriesModality):
        count = len(modality.variables)
        return np.concatenate([sample[:, :count] * std + mean, sample[:, count:]], axis=1)
    shape = (-1,) + (1,) * (sample.ndim - 1)
    return np.asarray(sample * std.reshape(shape) + mean.reshape(shape))


def _rounded(values: Float[np.ndarray, " point"], digits: int) -> list[float | None]:
    return [round(float(value), digits) if np.isfinite(value) else None for value in values]
