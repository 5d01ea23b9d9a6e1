"""Example cards: drawn by rule, not by success; in physical units; no picture of a real patient unless asked for."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from medfed.core.catalog import MODALITIES, TASKS
from medfed.data.cohort import Cohort
from medfed.datasets.base import Card
from medfed.datasets.decoded import Decoded
from medfed.modalities.base import Modality
from medfed.records.folder import RunFolder, prediction_file
from medfed.records.schema import ExampleCard, ExpertWeight, Prediction, Routing
from medfed.runs.cards import WITHHELD, answered, chosen, example_cards, heaviest, views_of
from medfed.tasks.base import Task, TaskSet

COUNT = 6


def physical(modality: Modality) -> np.ndarray:
    """Samples whose first example is easy to recognise."""
    values = np.zeros((COUNT, *modality.sample_shape), np.float32)
    if modality.name == "image":
        values[:, 0, :, 32:] = 1.0
    elif modality.name == "ecg":
        values[:, 1] = np.linspace(-1, 2, modality.sample_shape[1])
    else:
        count = modality.num_channels
        values[:, :, 0] = 80 + np.arange(24)
        values[:, :, count:] = 1.0
        values[:, 5] = 0.0
    return values


def cohort_of(task: Task, *, synthetic: bool) -> Cohort:
    card = Card(title="d", version="1", licence="x", access="x", citation="x", synthetic=synthetic)
    names = [f"patient-{number}" for number in range(COUNT)]
    index = pl.DataFrame({"example": names, "patient": names, task.target: pl.Series([0, 1] * 3, dtype=pl.Int8)})
    samples = {name: physical(MODALITIES[name]) for name in task.modalities}
    data = Decoded("d", card, index, samples, {name: np.ones(COUNT, bool) for name in samples})
    moments = {name: data.moments(MODALITIES[name], np.arange(COUNT)) for name in samples}
    examples = TaskSet(task, data.normalised(MODALITIES, moments), np.arange(COUNT))
    return Cohort({}, {}, {}, {task.name: examples}, {}, moments, {})


def cards_of(tmp_path: Path, name: str, *, synthetic: bool, show: bool = False) -> list[ExampleCard]:
    task, run = TASKS[name], RunFolder(tmp_path)
    lines = [
        Prediction(example=f"{n:016x}", patient="p", truth=n % 2, responses={"fedkim": [0.3, 0.7]})
        for n in range(COUNT)
    ]
    run.write_lines(lines, prediction_file(name))
    run.write_lines([Routing(round=n, alpha={name: alpha}) for n, alpha in enumerate(((0.9, 0.1), (0.2, 0.5, 0.3)))])
    return list(example_cards(run, [task], cohort_of(task, synthetic=synthetic), MODALITIES, 0, show=show).cards)


def test_examples_are_drawn_by_seed_and_task_alone() -> None:
    draws = {tuple(chosen(seed, task, 500)) for seed in range(20) for task in ("cd", "lod")}
    assert len(draws) == 40
    assert chosen(3, "cd", 500) == chosen(3, "cd", 500)
    assert all(len(set(pair)) == 2 for pair in draws)
    assert chosen(0, "cd", 1) == [0]
    assert chosen(0, "cd", 0) == []


def test_a_card_says_what_was_asked_answered_and_true(tmp_path: Path) -> None:
    for card, position in zip(cards_of(tmp_path, "cd", synthetic=True), chosen(0, "cd", COUNT), strict=True):
        assert card.question == TASKS["cd"].question
        assert card.gold == TASKS["cd"].answers[position % 2]
        assert card.probabilities == {"fedkim": dict(zip(TASKS["cd"].answers, (0.3, 0.7), strict=True))}
        assert card.experts == tuple(ExpertWeight(expert=n, weight=w) for n, w in ((2, 0.5), (3, 0.3), (1, 0.2)))
        assert card.example == f"{position:016x}"


def test_an_open_answer_is_a_text_beside_its_reference() -> None:
    truth = {"reference": "left lung", "closed": False, "target": -1}
    given = {"fedkim": {"text": "the left lung", "probabilities": [0.2, 0.8]}}
    card = answered(
        TASKS["cd"], Prediction(example="a", patient="p", question="Where is it?", truth=truth, responses=given)
    )
    assert (card.question, card.gold) == ("Where is it?", "left lung")
    assert card.generated == {"fedkim": "the left lung"}
    assert card.probabilities == {}


@pytest.mark.parametrize("name", ["cd", "ead", "mp"])
def test_real_patients_are_drawn_only_on_demand(tmp_path: Path, name: str) -> None:
    for card in cards_of(tmp_path, name, synthetic=False):
        assert card == ExampleCard(task=name, experts=card.experts, withheld=WITHHELD)
    for shown in (cards_of(tmp_path, name, synthetic=True), cards_of(tmp_path, name, synthetic=False, show=True)):
        assert all(card.views and card.withheld is None for card in shown)


def test_a_picture_is_the_image_before_normalisation(tmp_path: Path) -> None:
    for card in cards_of(tmp_path, "cd", synthetic=True):
        (view,) = card.views
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(view.png))))
        assert pixels.dtype == np.uint8
        assert (pixels[:, :31] == 0).all()
        assert (pixels[:, 33:] == 255).all()


def test_a_large_picture_is_made_small() -> None:
    modality = MODALITIES["image"].model_copy(update={"size": 224})
    (view,) = views_of(modality, np.zeros((1, 224, 224)))
    assert Image.open(io.BytesIO(base64.b64decode(view.png))).size == (96, 96)


def test_a_trace_is_lead_ii_in_millivolts(tmp_path: Path) -> None:
    print("a line from −1 to 2 mV over 1000 samples: its first 500, every second one, end at −1 + 3 · 498/999")
    (view,) = cards_of(tmp_path, "ead", synthetic=True)[0].views
    assert (len(view.values), view.seconds, view.unit) == (250, 5.0, "mV")
    assert view.values[0] == pytest.approx(-1, abs=0.01)
    assert view.values[-1] == pytest.approx(-1 + 3 * 498 / 999, abs=0.01)


def test_hours_nobody_measured_stay_gaps(tmp_path: Path) -> None:
    views = {view.title: view.values for view in cards_of(tmp_path, "mp", synthetic=True)[0].views}
    assert list(views) == ["hr", "map", "resp", "lact", "crea", "fio2", "urine"]
    assert views["hr"][5] is None
    assert views["hr"][4] == pytest.approx(84, abs=0.01)


def test_a_modality_without_a_rule_and_an_absent_one_are_not_drawn(tmp_path: Path) -> None:
    assert views_of(object(), np.zeros(3)) == []
    cohort = cohort_of(TASKS["cd"], synthetic=True)
    examples = cohort.test["cd"]
    blind = replace(examples.data, present={"image": np.zeros(COUNT, bool)})
    cohort = replace(cohort, test={"cd": TaskSet(examples.task, blind, examples.rows)})
    run = RunFolder(tmp_path)
    run.write_lines([Prediction(example="a", patient="p", truth=0, responses={})] * COUNT, prediction_file("cd"))
    found = example_cards(run, [TASKS["cd"]], cohort, MODALITIES, 0, show=False)
    assert [card.views for card in found.cards] == [(), ()]


def test_the_heaviest_experts_come_first() -> None:
    assert [e.expert for e in heaviest([0.1, 0.4, 0.05, 0.25, 0.2])] == [2, 4, 5]
    assert heaviest([]) == []
