"""``cards.json``: two test examples per task as one would show them to a colleague, and what the models responded.

The examples are drawn by (seed, task) before anything is known of their scores, so a card is no success story. Picture,
question and answer are written if the dataset is a synthetic twin, or with ``--show-examples``. By default the report
of real data shows no single patient.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from functools import singledispatch

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image

from medfed.core.rng import numpy_rng
from medfed.data.cohort import Cohort
from medfed.modalities.base import Modality, Moments
from medfed.modalities.image import ImageModality
from medfed.modalities.signal import LEADS, SignalModality
from medfed.modalities.timeseries import TimeSeriesModality
from medfed.records.folder import RunFolder
from medfed.records.schema import CardFile, ExampleCard, ExpertWeight, Prediction, Routing, View
from medfed.tasks.base import Task, TaskSet

CARDS_PER_TASK = 2
NUM_EXPERTS_NAMED = 3
MAX_PIXELS = 96
TRACE_SECONDS, TRACE_LEAD, TRACE_POINTS = 5.0, "II", 250
LINES = {"vitals": ("hr", "map", "resp"), "labs": ("lact", "crea"), "input": ("fio2",), "output": ("urine",)}
"""The variables a card draws; of a modality not listed here, the first two."""
RULE = f"{CARDS_PER_TASK} test examples per task, drawn from (seed, task) whatever the models said about them"
WITHHELD = "Real patient data: the example is not written here. medfed run --show-examples writes it."


def example_cards(
    run: RunFolder, tasks: Sequence[Task], cohort: Cohort, modalities: Mapping[str, Modality], seed: int, *, show: bool
) -> CardFile:
    """Return ``cards.json``, with the ``tasks`` in the report's order; ``show`` draws examples of real data too."""
    routing = run.lines(Routing)
    alpha = routing[-1].alpha if routing else {}
    cards = []
    for task in tasks:
        lines, examples = run.predictions(task.name), cohort.test[task.name]
        visible = show or examples.data.card.synthetic
        for position in chosen(seed, task.name, len(lines)):
            card = answered(task, lines[position]) if visible else ExampleCard(task=task.name, withheld=WITHHELD)
            views = _views(examples, position, modalities, cohort.moments) if visible else []
            experts = tuple(heaviest(alpha.get(task.name, ())))
            cards.append(card.model_copy(update={"experts": experts, "views": tuple(views)}))
    return CardFile(rule=RULE, cards=tuple(cards))


def chosen(seed: int, task: str, num_examples: int) -> list[int]:
    """Return the positions of the examples that get a card: a pure function of its arguments."""
    size = min(CARDS_PER_TASK, num_examples)
    return [int(p) for p in numpy_rng(seed, task, "cards").choice(num_examples, size, replace=False)]


def heaviest(alpha: Sequence[float]) -> list[ExpertWeight]:
    """Return the experts with the largest weights, numbered from 1, largest first."""
    order = sorted(range(len(alpha)), key=lambda index: -alpha[index])[:NUM_EXPERTS_NAMED]
    return [ExpertWeight(expert=index + 1, weight=alpha[index]) for index in order]


def answered(task: Task, line: Prediction) -> ExampleCard:
    """Return question, gold answer and what the models responded, without views.

    Of answers in words the card has the text, and no probability of a free text.
    """
    card = ExampleCard(task=task.name, example=line.example, question=line.question or task.question)
    given = line.responses.items()
    if isinstance(line.truth, dict):
        texts = {model: answer["text"] for model, answer in given}
        cut = tuple(model for model, answer in given if answer.get("cut"))
        return card.model_copy(update={"gold": line.truth["reference"], "generated": texts, "cut": cut})
    probabilities = {model: dict(zip(task.answers, values, strict=True)) for model, values in given}
    return card.model_copy(update={"gold": task.answers[line.truth], "probabilities": probabilities})


@singledispatch
def views_of(modality: object, sample: Shaped[np.ndarray, "*sample"]) -> list[View]:
    """Return what to draw of one sample in physical units; a modality without a rule of its own is not drawn."""
    return []


@views_of.register
def _image(modality: ImageModality, sample: Float[np.ndarray, "1 row column"]) -> list[View]:
    picture = Image.fromarray(np.round(255 * sample[0].clip(0, 1)).astype(np.uint8))
    picture.thumbnail((MAX_PIXELS, MAX_PIXELS))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return [View(kind="image", title=modality.name, png=base64.b64encode(file.getvalue()).decode())]


@views_of.register
def _trace(modality: SignalModality, sample: Float[np.ndarray, "lead time"]) -> list[View]:
    whole = modality.num_leads == len(LEADS)
    kept = sample[LEADS.index(TRACE_LEAD) if whole else 0, : round(TRACE_SECONDS * modality.sampling_hz)]
    values = _rounded(kept[:: max(1, len(kept) // TRACE_POINTS)], 3)
    title = f"{modality.name.upper()}, {f'lead {TRACE_LEAD}' if whole else 'first lead'}"
    return [View(kind="trace", title=title, unit="mV", seconds=len(kept) / modality.sampling_hz, values=values)]


@views_of.register
def _lines(modality: TimeSeriesModality, sample: Float[np.ndarray, "hour channel"]) -> list[View]:
    rows = []
    for name in LINES.get(modality.name, modality.variables[:2]):
        if name in modality.variables:
            column = modality.variables.index(name)
            observed = sample[:, len(modality.variables) + column] > 0
            values = _rounded(np.where(observed, sample[:, column], np.nan), 2)
            rows.append(View(kind="line", title=name, unit="by hour", values=values))
    return rows


def _views(
    examples: TaskSet, position: int, modalities: Mapping[str, Modality], moments: Mapping[str, Moments]
) -> list[View]:
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


def _rounded(values: Float[np.ndarray, " point"], digits: int) -> tuple[float | None, ...]:
    return tuple(round(float(value), digits) if np.isfinite(value) else None for value in values)
