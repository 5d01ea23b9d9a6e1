"""PTB-XL, 12-lead ECGs (FedKIM Table 2: abnormal ECG detection, EAD; ectopic beats detection, EBD).

Native layout: ``ptbxl_database.csv`` and ``records100/<thousands>/<ecg_id>_lr.{hea,dat}`` (WFDB, 100 Hz, 10 s). The
official folds 1–10 are dealt as the paper's 7:1:1:1: folds 1–7 private, 8 public, 9 development, 10 test.
Source: Wagner et al. 2020, PTB-XL, a large publicly available electrocardiography dataset.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl

from medfed.core.errors import DataError
from medfed.datasets.base import Dataset, Record, card_of
from medfed.datasets.tables import read_csv
from medfed.datasets.wfdb_records import read_wfdb

TABLE = "ptbxl_database.csv"
COLUMNS = ("ecg_id", "patient_id", "site", "scp_codes", "extra_beats", "strat_fold", "filename_lr")
NORMAL_ABOVE = 50.0
SPLIT_OF_FOLD = {**dict.fromkeys(range(1, 8), "private"), 8: "public", 9: "development", 10: "test"}
ALLOWED = {
    "ecg_id": "not a whole number",
    "patient_id": "not a whole number",
    "strat_fold": "not a fold from 1 to 10",
    "scp_codes": "not a dictionary of statement to likelihood",
    "filename_lr": "not a relative path inside the dataset",
}
T = TypeVar("T")


class PTBXL(Dataset):
    """PTB-XL at 100 Hz."""

    name = "ptbxl"
    card = card_of("ptbxl")
    modalities = ("ecg",)
    targets = ("abnormal", "ectopic_beats")
    marker = TABLE
    simulator = "medfed.twins.ecg:write_ecg_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """Read ``ptbxl_database.csv``.

        ``abnormal`` is 0 if the statement NORM has a likelihood above 50, else 1. ``ectopic_beats`` is 1 if the column
        extra_beats holds "ES" (1ES, VES, SVES, …), else 0.

        Raises:
            DataError: the table is missing or malformed; the message names column and row.
        """
        path = root / TABLE
        table = read_csv(path, COLUMNS)
        codes = _column(table, path, "scp_codes", _likelihoods)
        record = _column(table, path, "filename_lr", _relative_path)
        ectopic = table["extra_beats"].fill_null("").str.contains("ES", literal=True)
        return pl.DataFrame(
            {
                "example": [f"ptbxl:{number}" for number in _column(table, path, "ecg_id", _whole)],
                "patient": [f"ptbxl:{number}" for number in _column(table, path, "patient_id", _whole)],
                "site": table["site"].str.strip_suffix(".0"),
                "split": _column(table, path, "strat_fold", lambda text: SPLIT_OF_FOLD[_whole(text)]),
                "files": [[f"{name}.hea", f"{name}.dat"] for name in record],
                "abnormal": pl.Series([code.get("NORM", 0.0) <= NORMAL_ABOVE for code in codes]).cast(pl.Int8),
                "ectopic_beats": ectopic.cast(pl.Int8),
            }
        )

    def load(self, root: Path, record: Record) -> dict[str, np.ndarray]:
        """Return ``{"ecg": [12 leads, time]}`` in millivolts; see :func:`read_wfdb`."""
        header, signal = record["files"]
        return {"ecg": read_wfdb(root / header, root / signal)}


def _column(table: pl.DataFrame, path: Path, column: str, parse: Callable[[str], T]) -> list[T]:
    """Parse every cell of a text column; the error names the row."""
    parsed = []
    for row, text in enumerate(table[column], start=2):
        try:
            parsed.append(parse(text or ""))
        except (ValueError, OverflowError, KeyError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise DataError(
                f"column {column!r}, line {row}: {text!r} is {ALLOWED[column]}",
                where=path,
                hint="compare the line with the table on PhysioNet, and correct or remove it",
            ) from error
    return parsed


def _whole(text: str) -> int:
    number = float(text)
    if number != int(number):
        raise ValueError(text)
    return int(number)


def _relative_path(text: str) -> str:
    if not text or Path(text).is_absolute() or ".." in Path(text).parts:
        raise ValueError(text)
    return text


def _likelihoods(text: str) -> dict[str, float]:
    codes = ast.literal_eval(text)
    if not isinstance(codes, dict):
        raise TypeError(text)
    return {str(code): float(likelihood) for code, likelihood in codes.items()}


DATASETS: tuple[Dataset, ...] = (PTBXL(),)
