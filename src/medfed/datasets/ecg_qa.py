"""ECG-QA on signal quality, questions about PTB-XL's ECGs (FedKIM Table 2: ECG noise, as question answering).

Native layout: ``ecgqa/ptbxl/template/{train,valid,test}/*.json``; the records lie in PTB-XL under the same data root.
Kept are questions on noise (``attribute_type``) about a single ECG.
Source: Oh et al. 2023, ECG-QA: a comprehensive question answering dataset combined with electrocardiogram.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import polars as pl

from medfed.core.errors import DataError
from medfed.datasets.base import Card, Dataset, Record
from medfed.datasets.formats import Row, read_rows, text
from medfed.datasets.ptbxl import PTBXL, read_wfdb

SPLITS = {"train": "train", "valid": "development", "test": "test"}
WORDING = "template"
TWIN_RECORDS = "ptb-xl"
"""Folder of a twin's own ECGs, beside its questions."""


class EcgQa(Dataset):
    """Questions on noise in single ECGs; patients are PTB-XL's, under PTB-XL's names."""

    name: ClassVar[str] = "ecg-qa"
    card: ClassVar[Card] = Card(
        title="ECG-QA",
        version="1.0",
        licence="CC BY 4.0",
        access="https://github.com/Jwoo5/ecg-qa",
        citation="Oh et al., NeurIPS Datasets and Benchmarks (2023), arXiv:2306.15681",
        note="Needs PTB-XL under the same data root.",
    )
    modalities: ClassVar[tuple[str, ...]] = ("ecg",)
    targets: ClassVar[tuple[str, ...]] = ("answer",)
    marker: ClassVar[str] = f"ecgqa/ptbxl/{WORDING}"
    simulator: ClassVar[str] = "medfed.twins.ecg_questions:write_ecg_qa_twin"

    def locate(self, data_root: Path) -> Path:
        """Find the folder that holds both the questions and PTB-XL.

        Raises:
            DataError: one of the two is absent.
        """
        questions = super().locate(data_root)
        if (questions / TWIN_RECORDS).is_dir():
            return questions
        return Path(os.path.commonpath([questions, PTBXL().locate(data_root)]))

    def index(self, root: Path) -> pl.DataFrame:
        """One row per question; ``closed`` where the kind of question is answered by yes or no (single-verify).

        Raises:
            DataError: a file is missing or malformed, or names an ECG that PTB-XL lacks; the message names file,
                record and field.
        """
        questions = super().locate(root) / self.marker
        known = _known_ecgs(root)
        rows = [row for folder in SPLITS for path in _files(questions / folder) for row in _rows(path, folder, known)]
        if not rows:
            raise DataError(
                "no question on noise in a single ECG", where=questions, hint="download the complete dataset"
            )
        return pl.DataFrame(rows, schema_overrides={"site": pl.Utf8}, infer_schema_length=None)

    def load(self, root: Path, record: Record) -> dict[str, np.ndarray]:
        """Return ``{"ecg": [12 leads, time]}`` in millivolts."""
        header, signal = record["files"]
        return {"ecg": read_wfdb(root / header, root / signal)}


class Ecg(NamedTuple):
    """A record of PTB-XL; ``files`` are relative to the root that it shares with the questions."""

    patient: str
    site: str | None
    files: list[str]


def _known_ecgs(root: Path) -> dict[str, Ecg]:
    """Return ecg_id → record."""
    twin = root / TWIN_RECORDS
    records = PTBXL().locate(twin if twin.is_dir() else root)
    folder = records.relative_to(root)
    columns = PTBXL().index(records).select("example", "patient", "site", "files")
    return {
        example.removeprefix("ptbxl:"): Ecg(patient, site, [str(folder / file) for file in files])
        for example, patient, site, files in columns.iter_rows()
    }


def _files(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise DataError("the folder has no .json file", where=folder, hint="download the complete dataset")
    return paths


def _rows(path: Path, folder: str, known: Mapping[str, Ecg]) -> list[dict[str, object]]:
    """Return the index rows of one file's questions on noise in a single ECG."""
    rows = []
    for number, row in enumerate(read_rows(path)):
        ids = _values(row, "ecg_id", path, number)
        if text(row, "attribute_type", path, number) != "noise" or len(ids) != 1:
            continue
        if ids[0] not in known:
            raise DataError(
                f"record {number}: field 'ecg_id' is {ids[0]}, which {PTBXL.marker} lacks",
                where=path,
                hint="complete PTB-XL, or remove the record",
            )
        rows.append(
            {
                "example": f"ecg-qa:{folder}:{path.stem}:{number}",
                **known[ids[0]]._asdict(),
                "split": SPLITS[folder],
                "question": text(row, "question", path, number),
                "answer": ", ".join(_values(row, "answer", path, number)),
                "closed": text(row, "question_type", path, number).endswith("verify"),
            }
        )
    return rows


def _values(row: Row, field: str, path: Path, number: int) -> list[str]:
    values = row.get(field)
    if not isinstance(values, list) or not values:
        raise DataError(
            f"record {number}: field {field!r} is {values!r}, not a list with values",
            where=path,
            hint="correct or remove the record",
        )
    return [str(value) for value in values]


DATASETS: tuple[Dataset, ...] = (EcgQa(),)
