"""PTB-XL, 12-lead ECGs (FedKIM Table 2: abnormal ECG detection, EAD; ectopic beats detection, EBD).

Native layout: ``ptbxl_database.csv`` beside ``records100/<thousands>/<ecg_id>_lr.{hea,dat}`` (WFDB, 100 Hz, 10 s). The
official folds 1–10 are dealt as the paper's 7:1:1:1: folds 1–7 private, 8 public, 9 development, 10 test.
Source: Wagner et al. 2020, PTB-XL, a large publicly available electrocardiography dataset.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import polars as pl
from jaxtyping import Float32

from medfed.core.errors import DataError
from medfed.datasets.base import Card, Dataset, Record, read_csv
from medfed.modalities.signal import LEADS, RAW_HZ

TABLE = "ptbxl_database.csv"
COLUMNS = ("ecg_id", "patient_id", "site", "scp_codes", "extra_beats", "strat_fold", "filename_lr")
NORMAL_ABOVE = 50.0
SPLIT_OF_FOLD = {**dict.fromkeys(range(1, 8), "private"), 8: "public", 9: "development", 10: "test"}
T = TypeVar("T")


class PTBXL(Dataset):
    """PTB-XL at 100 Hz."""

    name: ClassVar[str] = "ptbxl"
    card: ClassVar[Card] = Card(
        title="PTB-XL",
        version="1.0.3",
        licence="CC BY 4.0",
        access="https://physionet.org/content/ptb-xl/1.0.3/",
        citation="Wagner et al., Scientific Data 7:154 (2020), doi:10.13026/x4td-x982",
        note="site is the recording site's number; a patient is in one fold only.",
    )
    modalities: ClassVar[tuple[str, ...]] = ("ecg",)
    targets: ClassVar[tuple[str, ...]] = ("abnormal", "ectopic_beats")
    marker: ClassVar[str] = TABLE
    simulator: ClassVar[str] = "medfed.twins.ecg:write_ecg_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """Read ``ptbxl_database.csv``.

        ``abnormal`` is 0 where the statement NORM has a likelihood above 50, else 1. ``ectopic_beats`` is 1 where the
        column extra_beats says "ES" (1ES, VES, SVES, …), else 0.

        Raises:
            DataError: the table is missing or malformed; the message names column and row.
        """
        path = root / TABLE
        table = read_csv(path, COLUMNS)
        codes = _column(table, path, "scp_codes", _likelihoods)
        record = _column(table, path, "filename_lr", _filled)
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
        """Return ``{"ecg": [12 leads, time]}`` in millivolts, leads in the order of :data:`LEADS`.

        Raises:
            DataError: header or signal is missing or damaged, or the record is not a 12-lead ECG in mV at 100 Hz.
        """
        header, signal = record["files"]
        return {"ecg": read_wfdb(root / header, root / signal)}


def read_wfdb(header: Path, signal: Path) -> Float32[np.ndarray, "lead time"]:
    """Read a 12-lead WFDB record at 100 Hz into millivolts, leads in the order of :data:`LEADS`.

    Raises:
        DataError: a file is missing or damaged, a lead is missing, or frequency or units differ.
    """
    import wfdb  # noqa: PLC0415 (large; loaded where it is used)

    for path in (header, signal):
        if not path.is_file():
            raise DataError("the file is missing", where=path, hint="a record is a .hea and a .dat file: get both")
    again = "the two files are truncated or do not belong together: download both again"
    try:
        record = wfdb.rdrecord(str(header.with_suffix("")))
    except Exception as error:  # wfdb reports damage as TypeError, IndexError, ValueError, …
        kind = f"{type(error).__name__}: {error}"
        raise DataError(
            f"not a readable WFDB record, {signal.stat().st_size} bytes ({kind})", where=signal, hint=again
        ) from error
    if record.p_signal is None or record.p_signal.size == 0:
        raise DataError("the record holds no samples", where=signal, hint=again)
    if record.fs != RAW_HZ:
        raise DataError(
            f"sampled at {record.fs} Hz; {RAW_HZ} Hz is needed", where=header, hint="use records100, not records500"
        )
    row = {name.upper(): position for position, name in enumerate(record.sig_name)}
    missing = [lead for lead in LEADS if lead not in row]
    if missing or len(row) < len(record.sig_name):
        problem = f"lead {', '.join(missing)} is missing" if missing else "a lead is named twice"
        raise DataError(f"{problem}; found {', '.join(record.sig_name)}", where=header, hint="download it again")
    if set(record.units) != {"mV"}:
        raise DataError(f"units {', '.join(record.units)}; mV is needed", where=header, hint="download it again")
    ordered: np.ndarray = record.p_signal[:, [row[lead] for lead in LEADS]].T
    return ordered.astype(np.float32)


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


ALLOWED = {
    "ecg_id": "not a whole number",
    "patient_id": "not a whole number",
    "strat_fold": "not a fold from 1 to 10",
    "scp_codes": "not a dictionary of statement to likelihood",
    "filename_lr": "not a relative path inside the dataset",
}


def _whole(text: str) -> int:
    number = float(text)
    if number != int(number):
        raise ValueError(text)
    return int(number)


def _filled(text: str) -> str:
    if not text or Path(text).is_absolute() or ".." in Path(text).parts:
        raise ValueError(text)
    return text


def _likelihoods(text: str) -> dict[str, float]:
    codes = ast.literal_eval(text)
    if not isinstance(codes, dict):
        raise TypeError(text)
    return {str(code): float(likelihood) for code, likelihood in codes.items()}


DATASETS: tuple[Dataset, ...] = (PTBXL(),)
