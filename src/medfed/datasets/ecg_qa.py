"""ECG-QA on signal quality, questions about PTB-XL's ECGs (FedKIM Table 2: ECG noise, as question answering).

Native layout: ``ecgqa/ptbxl/template/{train,valid,test}/*.json``; the records are PTB-XL's, under the same data root.
Kept are questions on noise (``attribute_type``) about a single ECG.
Source: Oh et al. 2023, ECG-QA: a comprehensive question answering dataset combined with electrocardiogram.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from medfed.core.catalog import DATASETS as KNOWN
from medfed.datasets.base import COMPLETE, Dataset, Raw, Record, require
from medfed.datasets.questions import read_entries
from medfed.datasets.wfdb_records import read_wfdb

SPLITS = {"train": "train", "valid": "development", "test": "test"}
RECORDS, TWIN_RECORDS = "ptbxl", "ptb-xl"
"""The dataset that holds the ECGs, and the folder of a twin's ECGs."""


class EcgQa(Dataset):
    """Questions on noise in single ECGs; patients are PTB-XL's, under PTB-XL's names."""

    name = "ecg-qa"
    modalities = ("ecg",)
    targets = ("answer",)
    marker = "ecgqa/ptbxl/template"
    simulator = "medfed.twins.ecg_questions:write_ecg_qa_twin"

    def locate(self, data_root: Path) -> Path:
        """Find the folder that holds both the questions and PTB-XL."""
        questions = super().locate(data_root)
        if (questions / TWIN_RECORDS).is_dir():
            return questions
        return Path(os.path.commonpath([questions, KNOWN[RECORDS].locate(data_root)]))

    def index(self, root: Path) -> pl.DataFrame:
        """One row per question; ``closed`` if the kind of question is answered by yes or no (single-verify)."""
        questions = super().locate(root) / self.marker
        ecgs, rows = _known_ecgs(root), []
        for folder in SPLITS:
            paths = sorted((questions / folder).glob("*.json"))
            require(paths, "the folder has no .json file", questions / folder, COMPLETE)
            rows += [row for path in paths for row in _rows(path, folder, ecgs)]
        require(rows, "no question on noise in a single ECG", questions, COMPLETE)
        return pl.DataFrame(rows, schema_overrides={"site": pl.Utf8}, infer_schema_length=None)

    def load(self, root: Path, record: Record) -> Raw:
        """Return ``{"ecg": [12 leads, time]}`` in millivolts; see :func:`read_wfdb`."""
        header, signal = record["files"]
        return {"ecg": read_wfdb(root / header, root / signal)}


def _known_ecgs(root: Path) -> dict[str, dict[str, object]]:
    """Return ecg_id → patient, site, and files below the root that PTB-XL shares with the questions."""
    ptbxl, twin = KNOWN[RECORDS], root / TWIN_RECORDS
    records = ptbxl.locate(twin if twin.is_dir() else root)
    folder = records.relative_to(root)
    known = {}
    for row in ptbxl.index(records).select("example", "patient", "site", "files").iter_rows(named=True):
        files = [str(folder / file) for file in row["files"]]
        known[row["example"].removeprefix("ptbxl:")] = {"patient": row["patient"], "site": row["site"], "files": files}
    return known


def _rows(path: Path, folder: str, ecgs: Mapping[str, dict[str, object]]) -> Iterator[dict[str, object]]:
    """Yield the index rows of one file's questions on noise in a single ECG."""
    for entry in read_entries(path):
        ids = entry.values("ecg_id")
        if entry.text("attribute_type") != "noise" or len(ids) != 1:
            continue
        if ids[0] not in ecgs:
            hint = "complete PTB-XL, or remove the record"
            raise entry.error("ecg_id", f"is {ids[0]}, which {KNOWN[RECORDS].marker} lacks", hint)
        yield {
            "example": f"ecg-qa:{folder}:{path.stem}:{entry.number}",
            **ecgs[ids[0]],
            "split": SPLITS[folder],
            "question": entry.text("question"),
            "answer": ", ".join(entry.values("answer")),
            "closed": entry.text("question_type").endswith("verify"),
        }


DATASETS: tuple[Dataset, ...] = (EcgQa(),)
