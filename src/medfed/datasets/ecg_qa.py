"""ECG-QA on signal quality, questions about PTB-XL's ECGs (FedKIM Table 2: ECG noise, as question answering).

Native layout: ``ecgqa/ptbxl/template/{train,valid,test}/*.json``; the records lie in PTB-XL under the same data root.
Kept are questions on noise (``attribute_type``) about a single ECG.
Source: Oh et al. 2023, ECG-QA: a comprehensive question answering dataset combined with electrocardiogram.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from medfed.datasets.base import Card, Dataset, Record, TwinSpec
from medfed.datasets.ptbxl import PTBXL, read_wfdb
from medfed.datasets.questions import Row, read_rows, text
from medfed.errors import DataError

SPLITS = {"train": "train", "valid": "development", "test": "test"}
WORDING = "template"


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

    def locate(self, data_root: Path) -> Path:
        """Find the folder that holds both the questions and PTB-XL.

        Raises:
            DataError: one of the two is absent.
        """
        return Path(os.path.commonpath([super().locate(data_root), PTBXL().locate(data_root)]))

    def index(self, root: Path) -> pl.DataFrame:
        """One row per question; ``closed`` where the kind of question is answered by yes or no (single-verify).

        Raises:
            DataError: a file is missing or malformed, or names an ECG that PTB-XL lacks; the message names the field.
        """
        questions, records = super().locate(root) / self.marker, PTBXL().locate(root)
        prefix = records.relative_to(root)
        known = {
            example: (patient, site, [str(prefix / file) for file in files])
            for example, patient, site, files in PTBXL()
            .index(records)
            .select("example", "patient", "site", "files")
            .rows()
        }
        rows: list[dict[str, object]] = []
        for folder, split in SPLITS.items():
            for path in sorted((questions / folder).glob("*.json")):
                for number, row in enumerate(read_rows(path)):
                    ecgs = _values(row, "ecg_id", path, number)
                    if text(row, "attribute_type", path, number) != "noise" or len(ecgs) != 1:
                        continue
                    if f"ptbxl:{ecgs[0]}" not in known:
                        raise DataError(
                            f"record {number}: field 'ecg_id' is {ecgs[0]}, which {records / PTBXL.marker} lacks",
                            where=path,
                            hint="complete PTB-XL",
                        )
                    patient, site, files = known[f"ptbxl:{ecgs[0]}"]
                    rows.append(
                        {
                            "example": f"ecg-qa:{folder}:{path.stem}:{number}",
                            "patient": patient,
                            "site": site,
                            "split": split,
                            "files": files,
                            "question": text(row, "question", path, number),
                            "answer": ", ".join(_values(row, "answer", path, number)),
                            "closed": text(row, "question_type", path, number).endswith("verify"),
                        }
                    )
        if not rows:
            raise DataError(
                "no question on noise in a single ECG", where=questions, hint="download the complete dataset"
            )
        return pl.DataFrame(rows, schema_overrides={"site": pl.Utf8}, infer_schema_length=None)

    def load(self, root: Path, record: Record) -> dict[str, np.ndarray]:
        """Return ``{"ecg": [12 leads, time]}`` in millivolts."""
        header, signal = record["files"]
        return {"ecg": read_wfdb(root / header, root / signal)}

    def synthesize(self, root: Path, spec: TwinSpec) -> None:
        """Not written yet."""
        raise DataError("ECG-QA has no synthetic twin yet", where=root, hint="use the release, with --data-root")


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
