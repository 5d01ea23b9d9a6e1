"""The twin of ECG-QA: noises are drawn where the table says, and answers follow the table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from medfed.datasets.base import write_twin
from medfed.datasets.ecg_qa import EcgQa
from medfed.modalities.signal import LEADS
from medfed.study.data import TwinSpec
from medfed.twins.ecg_noise import ELECTRODES, disturbance, noise
from medfed.twins.ecg_questions import NOISES, POPULATION

LIMBS = {"I", "II", "III", "AVR", "AVL", "AVF"}


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ecg-qa")
    write_twin(EcgQa(), root, TwinSpec(num_patients=200))
    return root


@pytest.fixture(scope="module")
def rows(twin: Path) -> list[dict[str, list[str]]]:
    return [row for path in sorted(twin.rglob("template/*/*.json")) for row in json.loads(path.read_text("utf-8"))]


@pytest.fixture(scope="module")
def notes(twin: Path) -> dict[int, dict[str, str]]:
    """ecg_id → noise as ECG-QA calls it → what its column says."""
    table = pl.read_csv(twin / "ptb-xl" / "ptbxl_database.csv", infer_schema=False)
    return {
        int(row["ecg_id"]): {noise: row[column] or "" for column, noise in NOISES.items()}
        for row in table.iter_rows(named=True)
    }


def leads(note: str) -> set[str]:
    word = note.replace(",", "").strip()
    return set(LEADS) if word == "alles" else LIMBS if word == "I-AVF" else {word} - {""}


def test_yes_means_that_the_column_names_the_lead(
    rows: list[dict[str, list[str]]], notes: dict[int, dict[str, str]]
) -> None:
    answers = []
    for row in (row for row in rows if row["question_type"] == "single-verify"):
        (kind,), (ecg,) = row["attribute"], row["ecg_id"]
        lead = re.search(r"in lead (\w+)\?", str(row["question"]))
        written = leads(notes[int(ecg)][kind])
        assert (row["answer"] == ["yes"]) == bool(written & {lead[1].upper()} if lead else written)
        answers.append((row["answer"][0], lead is None))
    assert set(answers) == {("yes", True), ("yes", False), ("no", True), ("no", False)}


def test_choices_and_queries_name_what_the_columns_say(
    rows: list[dict[str, list[str]]], notes: dict[int, dict[str, str]]
) -> None:
    for row in (row for row in rows if row["question_type"] != "single-verify"):
        said = notes[int(row["ecg_id"][0])]
        lead = re.search(r"in lead (\w+)", str(row["question"]))
        if str(row["question"]).startswith("In which leads"):
            written = leads(said[row["attribute"][0]])
            true = {f"lead {name}" for name in written}
            assert {answer.replace("aV", "AV") for answer in row["answer"]} == (true or {"none"})
        else:
            place = {lead[1].upper()} if lead else set(LEADS)
            true = {kind for kind in row["attribute"] if leads(said[kind]) & place}
            assert set(row["answer"]) == (true or {"none"})
    assert {row["question_type"] for row in rows if row["answer"] == ["none"]} == {"single-choose", "single-query"}


@pytest.mark.parametrize(("column", "field"), [("burst_noise", "burst"), ("electrodes_problems", "loose")])
def test_a_burst_or_a_loose_electrode_is_drawn_in_the_lead_that_is_written(column: str, field: str) -> None:
    found = 0
    for seed in range(60):
        source = disturbance(1.0, np.random.default_rng(seed), POPULATION.shares)
        electrode = getattr(source, field)
        assert source.notes.get(column) == (ELECTRODES[electrode] if electrode is not None else None)
        if electrode is None:
            continue
        quiet = source._replace(**{field: None})
        drawn, without = (noise(each, 1000, np.random.default_rng(7)) for each in (source, quiet._replace(loose=None)))
        if field == "burst":
            drawn = noise(source._replace(loose=None), 1000, np.random.default_rng(7))
        changed = np.abs(drawn - without).max(axis=1) > 1e-9
        assert [LEADS[position] for position in np.flatnonzero(changed)] == [ELECTRODES[electrode]]
        found += 1
    assert found > 3


def test_muscle_noise_and_drift_are_drawn_where_they_are_written() -> None:
    for seed in range(60):
        source = disturbance(1.0, np.random.default_rng(seed), POPULATION.shares)
        static = source.notes.get("static_noise", "").strip(" ,")
        usual = source.muscle[3:].max() if static != "alles" else 0.0
        assert (source.muscle[:3].min() > 0.015) == bool(static)
        assert static != "I-AVF" or source.muscle[:3].min() > usual - 0.01
        if "baseline_drift" in source.notes:
            assert source.drift[ELECTRODES.index(source.notes["baseline_drift"].strip(" ,"))] > 0.1


def test_folders_follow_the_folds(twin: Path) -> None:
    index = EcgQa().index(twin)
    assert set(index["split"]) == {"train", "development", "test"}
    assert index.group_by("patient").agg(pl.col("split").n_unique())["split"].max() == 1
