"""MIMIC-CXR-JPG: which film stands for a study, what a label cell means, what of a report is read."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from medfed.datasets.base import write_twin
from medfed.datasets.images import write_grey
from medfed.datasets.mimic_cxr import MimicCxr, sections
from medfed.datasets.tables import CHEXPERT_LABELS
from medfed.study.data import TwinSpec

DATASET = MimicCxr()
FOLDER = "files/p12/p12000001"
FILM = {"dicom_id": "aa", "subject_id": "12000001", "study_id": "55000001", "split": "train", "ViewPosition": "PA"}


def write_tables(
    root: Path, films: list[Mapping[str, str]], labels: Mapping[str, str] | None = None, *, zipped: bool = True
) -> Path:
    """Write the three tables of ``films``, and the label row of study 55000001 with ``labels`` in it."""
    rows = [{**FILM, **film} for film in films]
    tables = {
        "split": pl.DataFrame(rows).select("dicom_id", "study_id", "subject_id", "split"),
        "metadata": pl.DataFrame(rows).select("dicom_id", "subject_id", "study_id", "ViewPosition"),
        "chexpert": pl.DataFrame(
            {
                "subject_id": ["12000001"],
                "study_id": ["55000001"],
                **{column: [(labels or {}).get(column, "")] for column in CHEXPERT_LABELS.values()},
            }
        ),
    }
    for name, table in tables.items():
        content = table.write_csv().encode()
        path = root / f"mimic-cxr-2.0.0-{name}.csv"
        if zipped:
            path.with_suffix(".csv.gz").write_bytes(gzip.compress(content))
        else:
            path.write_bytes(content)
    return root


@pytest.mark.parametrize("zipped", [True, False])
def test_a_study_is_one_example_with_its_frontal_film(tmp_path: Path, zipped: bool) -> None:
    films = [
        {"dicom_id": "a-lateral", "ViewPosition": "LATERAL"},
        {"dicom_id": "c-pa", "ViewPosition": "PA"},
        {"dicom_id": "b-ap", "ViewPosition": "AP"},
        {"dicom_id": "e", "study_id": "55000002", "ViewPosition": ""},
        {"dicom_id": "d", "study_id": "55000002", "ViewPosition": "LL"},
        {"dicom_id": "f", "study_id": "55000003", "subject_id": "19000007", "split": "validate"},
    ]
    index = DATASET.index(write_tables(tmp_path, films, zipped=zipped))
    assert index.select("example", "patient", "split").rows() == [
        ("mimic-cxr:s55000001", "mimic:12000001", "train"),
        ("mimic-cxr:s55000002", "mimic:12000001", "train"),
        ("mimic-cxr:s55000003", "mimic:19000007", "development"),
    ]
    assert index["files"].to_list()[:2] == [
        [f"{FOLDER}/s55000001/c-pa.jpg", f"{FOLDER}/s55000001.txt"],
        [f"{FOLDER}/s55000002/d.jpg", f"{FOLDER}/s55000002.txt"],
    ]
    assert index["files"][2][0] == "files/p19/p19000007/s55000003/f.jpg"


def test_cells_mean_present_absent_uncertain_and_not_mentioned(tmp_path: Path) -> None:
    labels = {"Edema": "1.0", "Fracture": "0.0", "Pneumonia": "-1.0", "Atelectasis": "1", "Lung Lesion": "-1"}
    index = DATASET.index(write_tables(tmp_path, [{}, {"study_id": "55000002", "dicom_id": "bb"}], labels))
    known = index.row(0, named=True)
    assert {name: known[name] for name in ("edema", "fracture", "pneumonia", "atelectasis", "lung_lesion")} == {
        "edema": 1,
        "fracture": 0,
        "pneumonia": None,
        "atelectasis": 1,
        "lung_lesion": None,
    }
    assert known["cardiomegaly"] == 0
    assert {index.row(1, named=True)[name] for name in CHEXPERT_LABELS} == {None}, "a study without a row is unknown"


@pytest.mark.parametrize("folder", ["", "mimic-cxr-reports"])
def test_film_and_report_may_each_be_absent(tmp_path: Path, folder: str) -> None:
    write_tables(tmp_path, [{}])
    study = tmp_path / FOLDER / "s55000001"
    study.mkdir(parents=True)
    write_grey(study / "aa.jpg", np.full((40, 40), 0.5, np.float32))
    if folder:
        (tmp_path / folder / FOLDER).mkdir(parents=True)
    record = DATASET.index(tmp_path).row(0, named=True)
    assert set(DATASET.load(tmp_path, record)) == {"image"}
    report = tmp_path / folder / FOLDER / "s55000001.txt"
    report.write_text(" FINDINGS: \n \n Clear\n lungs.\n", encoding="utf-8")
    both = DATASET.load(tmp_path, record)
    assert bytes(both["report"]) == b"Clear lungs."
    assert both["image"].shape == (40, 40)
    (study / "aa.jpg").unlink()
    assert set(DATASET.load(tmp_path, record)) == {"report"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" INDICATION: pain\n FINDINGS: \n No edema.\n\n IMPRESSION:\n Normal.\n", "No edema. Normal."),
        (" FINDINGS AND IMPRESSION: Fine. \n RECOMMENDATION(S): none", "Fine."),
        ("CONCLUSION: a b\nNOTIFICATION: called Dr. ___", "a b"),
        ("                 FINAL REPORT\n CHEST:\n\n First paragraph.\n\n Last: one.\n", "Last: one."),
        ("Nothing but words.", "Nothing but words."),
        (" FINDINGS: \n \n IMPRESSION: \n", ""),
        ("", ""),
    ],
)
def test_sections(text: str, expected: str) -> None:
    assert sections(text) == expected


def test_the_twins_reports_do_not_give_the_labels_away(tmp_path: Path) -> None:
    """Findings go unmentioned, and absent ones are named: no word says for sure what the table says."""
    write_twin(DATASET, tmp_path, TwinSpec(num_patients=60, image_size=32))
    index = DATASET.index(tmp_path)
    rows = list(index.iter_rows(named=True))
    texts = [bytes(DATASET.load(tmp_path, row).get("report", np.zeros(0, np.uint8))).decode().lower() for row in rows]
    named = np.array(["pleural effusion" in text or "costophrenic" in text for text in texts])
    has = index["pleural_effusion"].fill_null(0).to_numpy() == 1
    assert (has & ~named).any()
    assert (~has & named).any()
    assert named[has].mean() > 1.5 * named[~has].mean()
    assert not any("evaluate for" in text for text in texts), "the indication is not read"
    assert 0 < sum(not text for text in texts) < len(texts) / 5, "a few studies have no report"
    assert index.filter(pl.col("patient").is_duplicated()).height > 0
    assert set(index["split"]) == {"train", "development", "test"}
