"""Damaged MIMIC-IV and eICU tables end in a message that names table and column and quotes no patient's row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from medfed.core.catalog import MODALITIES
from medfed.core.errors import DataError
from medfed.data.decode import decode
from medfed.datasets.base import Dataset, write_twin
from medfed.datasets.eicu import Eicu
from medfed.datasets.mimic_iv import MimicIV
from medfed.study.data import TwinSpec

DATASETS: dict[str, Dataset] = {"mimic": MimicIV(), "eicu": Eicu()}
TABLES = {
    "mimic": ("hosp/patients", "hosp/admissions", "icu/icustays", "hosp/labevents"),
    "eicu": ("patient", "lab"),
}
EACH = [(kind, table) for kind, tables in TABLES.items() for table in tables]


def message(kind: str, root: Path) -> str:
    with pytest.raises(DataError) as error:
        decode(DATASETS[kind], root, MODALITIES)
    assert "next step:" in str(error.value)
    return str(error.value)


def twin(kind: str, root: Path) -> Path:
    write_twin(DATASETS[kind], root, TwinSpec(num_patients=6))
    return root


def path_of(root: Path, table: str) -> Path:
    return next(root.glob(f"{table}.csv*"))


def rewrite(root: Path, table: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    path = path_of(root, table)
    rows = pl.read_csv(path, infer_schema=False)
    path.unlink()
    change(rows).write_csv(root / f"{table}.csv")


@pytest.mark.parametrize(("kind", "table"), EACH)
def test_a_missing_table_is_named(tmp_path: Path, kind: str, table: str) -> None:
    path_of(twin(kind, tmp_path), table).unlink()
    assert f"{table}.csv: the file is missing" in message(kind, tmp_path)


@pytest.mark.parametrize("table", TABLES["mimic"])
def test_a_table_cut_short_is_named(tmp_path: Path, table: str) -> None:
    path = path_of(twin("mimic", tmp_path), table)
    path.write_bytes(path.read_bytes()[:-20])
    text = message("mimic", tmp_path)
    assert f"{table}.csv.gz: " in text
    assert "cannot be read" in text


@pytest.mark.parametrize(
    ("kind", "table", "column"),
    [
        ("mimic", "hosp/patients", "anchor_age"),
        ("mimic", "hosp/admissions", "hospital_expire_flag"),
        ("mimic", "icu/icustays", "intime"),
        ("mimic", "hosp/labevents", "valueuom"),
        ("eicu", "patient", "hospitaldischargestatus"),
        ("eicu", "lab", "labresultoffset"),
    ],
)
def test_a_missing_column_is_named(tmp_path: Path, kind: str, table: str, column: str) -> None:
    rewrite(twin(kind, tmp_path), table, lambda rows: rows.drop(column))
    text = message(kind, tmp_path)
    assert f"{table}.csv: column {column!r} is missing" in text


@pytest.mark.parametrize(
    ("kind", "table", "column", "value", "words"),
    [
        ("mimic", "hosp/admissions", "hospital_expire_flag", "dead", "'dead' is not allowed; allowed: 0, 1"),
        ("mimic", "icu/icustays", "intime", "yesterday", "column 'intime': 'yesterday' is not a time"),
        ("mimic", "icu/icustays", "intime", None, "column 'intime' has an empty cell"),
        ("mimic", "hosp/patients", "anchor_age", "old", "column 'anchor_age': 'old' is not a number"),
        ("mimic", "hosp/labevents", "charttime", "12:00", "column 'charttime': '12:00' is not a time"),
        ("mimic", "hosp/labevents", "valuenum", "++", "column 'valuenum': '++' is not a number"),
        ("eicu", "patient", "hospitaldischargestatus", "Dead", "'Dead' is not allowed; allowed: Expired, Alive"),
        ("eicu", "patient", "age", ">89", "column 'age': '>89' is not a number"),
        ("eicu", "patient", "hospitalid", None, "column 'hospitalid' has an empty cell"),
        ("eicu", "lab", "labresult", "high", "column 'labresult': 'high' is not a number"),
        ("eicu", "lab", "labresultoffset", "noon", "column 'labresultoffset': 'noon' is not a number"),
    ],
)
def test_an_unheard_of_cell_is_named(
    tmp_path: Path, kind: str, table: str, column: str, value: str | None, words: str
) -> None:
    rewrite(twin(kind, tmp_path), table, lambda rows: rows.with_columns(pl.lit(value, pl.Utf8).alias(column)))
    text = message(kind, tmp_path)
    assert f"{table}.csv: " in text
    assert words in text


def test_a_line_with_too_many_cells_is_refused_without_quoting_it(tmp_path: Path) -> None:
    path = twin("eicu", tmp_path) / "lab.csv"
    with path.open("a", encoding="utf-8") as file:
        file.write("secret,secret,secret,secret,secret,secret,secret\n")
    text = message("eicu", tmp_path)
    assert "lab.csv: not a UTF-8 CSV table" in text
    assert "secret" not in text


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = twin("eicu", tmp_path) / "patient.csv"
    path.write_bytes(path.read_bytes().replace(b"Female", b"F\xe9male").replace(b"Male", b"M\xe9le"))
    assert "patient.csv: not a UTF-8 CSV table" in message("eicu", tmp_path)


def test_an_admission_that_is_not_listed_leaves_the_outcome_unknown(tmp_path: Path) -> None:
    root = twin("mimic", tmp_path)
    rewrite(root, "hosp/admissions", lambda rows: rows.head(rows.height - 1))
    index = DATASETS["mimic"].index(root)
    assert index["mortality"].null_count() == 1
