"""Cohorts: patients apart, unseen tasks tested on strangers only, normalisation from private training data only."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from medfed.core.catalog import MODALITIES, TASKS
from medfed.core.errors import DataError
from medfed.data.cohort import Cohort, build_cohort
from medfed.data.layout import Division
from medfed.datasets.base import Card
from medfed.datasets.decoded import Decoded
from medfed.study.data import PartitionSettings, SplitSettings

CARD = Card(title="made up", version="1", licence="Apache-2.0", access="-", citation="-", synthetic=True)
SIZE = 64


def films(name: str, target: str, first: int, count: int, brightness: float) -> Decoded:
    """One film a patient; patients are numbered over all datasets."""
    numbers = range(first, first + count)
    index = pl.DataFrame(
        {
            "example": [f"{name}-{number}" for number in numbers],
            "patient": [f"p{number}" for number in numbers],
            "site": pl.Series([None] * count, dtype=pl.Utf8),
            "split": pl.Series([None] * count, dtype=pl.Utf8),
            target: pl.Series([number % 2 for number in numbers], dtype=pl.Int8),
        }
    )
    values = np.random.default_rng(first).random((count, 1, SIZE, SIZE), np.float32) + np.float32(brightness)
    return Decoded(name, CARD, index, {"image": values}, {"image": np.ones(count, bool)})


def cohort(data: dict[str, Decoded], **changes: int) -> Cohort:
    train, unseen = (TASKS["cd"], TASKS["lod"]), (TASKS["ped-nih"],)
    image, split = {"image": MODALITIES["image"]}, SplitSettings.model_validate(changes)
    return build_cohort(data, Division(train, unseen, image, split, PartitionSettings(), seed=3))


def three_collections() -> dict[str, Decoded]:
    return {
        "covid-radiography": films("covid-radiography", "covid", 0, 200, 0.0),
        "rsna-pneumonia": films("rsna-pneumonia", "lung_opacity", 150, 200, 1.0),
        "chestxray14": films("chestxray14", "effusion", 100, 300, 0.5),
    }


def test_no_patient_is_in_two_places_over_all_datasets_and_tasks() -> None:
    made = cohort(three_collections())
    places: dict[str, set[str]] = {}
    for client, tasks in made.clients.items():
        for examples in tasks.values():
            for patient in examples.patients:
                places.setdefault(patient, set()).add(client)
    for part in ("public", "development", "test"):
        for examples in getattr(made, part).values():
            for patient in examples.patients:
                places.setdefault(patient, set()).add(part)
    assert all(len(where) == 1 for where in places.values())
    assert len(places) == 400  # patients 0 to 399 over the three collections


def test_a_server_with_a_maximum_keeps_some_of_its_own_examples_and_nobody_gains_any() -> None:
    whole, few = cohort(three_collections()), cohort(three_collections(), max_public=7, max_test=11)
    for part, most in (("public", 7), ("test", 11), ("development", 400)):
        for name, examples in getattr(few, part).items():
            before = getattr(whole, part)[name].examples
            assert len(examples) == min(most, len(before)), (part, name)
            assert set(examples.examples) <= set(before), (part, name)
    for client, tasks in few.clients.items():
        for name, examples in tasks.items():
            assert examples.examples == whole.clients[client][name].examples, "clients keep what they have"
    again = cohort(three_collections(), max_public=7, max_test=11)
    assert all(again.test[name].examples == few.test[name].examples for name in few.test)


def test_an_unseen_task_is_tested_on_every_stranger_and_no_one_else() -> None:
    made = cohort(three_collections())
    seen = {
        patient
        for tasks in (*made.clients.values(), made.public, made.development)
        for examples in tasks.values()
        for patient in examples.patients
    }
    everyone = {f"p{number}" for number in range(100, 400)}
    assert set(made.test["ped-nih"].patients) == everyone - seen


def test_normalisation_comes_from_private_training_data_only() -> None:
    made = cohort(three_collections())
    private = np.concatenate(
        [
            examples.batch(np.arange(len(examples))).inputs["image"].numpy()
            for tasks in made.clients.values()
            for examples in tasks.values()
        ]
    )
    # the pooled moments are those of exactly these examples, so they come out with mean 0 and spread 1
    assert private.mean() == pytest.approx(0, abs=1e-3)
    assert private.std() == pytest.approx(1, abs=1e-3)
    data = three_collections()
    data["chestxray14"] = films("chestxray14", "effusion", 100, 300, 50.0)
    moved = cohort(data).clients["client-0"]["cd"].batch(np.arange(4)).inputs["image"]
    assert np.array_equal(moved, made.clients["client-0"]["cd"].batch(np.arange(4)).inputs["image"])


def test_a_task_left_without_examples_is_named() -> None:
    data = three_collections()
    data["rsna-pneumonia"] = films("rsna-pneumonia", "lung_opacity", 1000, 2, 0.0)
    with pytest.raises(DataError, match="'lod' has no"):
        cohort(data)


def ecgs(name: str, first: int, count: int, splits: tuple[str, ...]) -> Decoded:
    """One ECG a patient; official splits come in turn."""
    numbers = range(first, first + count)
    index = pl.DataFrame(
        {
            "example": [f"{name}-{number}" for number in numbers],
            "patient": [f"ptbxl:{number}" for number in numbers],
            "site": pl.Series([None] * count, dtype=pl.Utf8),
            "split": [splits[number % len(splits)] for number in numbers],
            "abnormal": pl.Series([number // 7 % 2 for number in numbers], dtype=pl.Int8),
        }
    )
    values = np.random.default_rng(first).random((count, 12, 1000), np.float32)
    return Decoded(name, CARD, index, {"ecg": values}, {"ecg": np.ones(count, bool)})


def test_official_splits_of_an_unseen_task_may_differ_from_those_of_a_trained_one() -> None:
    data = {
        "ptbxl": ecgs("ptbxl", 0, 100, ("private", "private", "public", "development", "test")),
        "ecg-qa": ecgs("ecg-qa", 50, 100, ("test", "train")),
    }
    asked = TASKS["ead"].model_copy(update={"name": "asked", "dataset": "ecg-qa"})
    ecg = {"ecg": MODALITIES["ecg"]}
    partition = PartitionSettings(num_clients=2)
    made = build_cohort(data, Division((TASKS["ead"],), (asked,), ecg, SplitSettings(), partition, seed=0))
    print("PTB-XL's own test patients (every fifth from 54 to 99) and the strangers from 100 on")
    assert set(made.test["asked"].patients) == {f"ptbxl:{number}" for number in (*range(54, 100, 5), *range(100, 150))}
