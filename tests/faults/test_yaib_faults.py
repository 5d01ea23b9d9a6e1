"""Broken YAIB cohorts: each fault names the file and the column or stay."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from medfed.core.errors import DataError
from medfed.datasets.yaib import YaibMortality, YaibSepsis
from support.native_files import dynamic, write_cohort

MORTALITY, SEPSIS = YaibMortality(), YaibSepsis()
DYN = dynamic([(3, 0), (5, 0)], {"hr": [70.0, 90.0]})
OUTCOME = pl.DataFrame({"stay_id": [3, 5], "label": [0, 1]})


def load_first(root: Path) -> None:
    MORTALITY.load(root, MORTALITY.index(root).row(0, named=True))


@pytest.mark.parametrize("column", ["lact", "hr", "stay_id", "time"])
def test_a_missing_column_of_dyn_is_named(tmp_path: Path, column: str) -> None:
    write_cohort(tmp_path / "mortality24" / "d", DYN.drop(column), OUTCOME)
    with pytest.raises(DataError, match=rf"mortality24/d/dyn.parquet: column '{column}' is missing"):
        load_first(tmp_path)


@pytest.mark.parametrize("column", ["stay_id", "label"])
def test_a_missing_column_of_outc_is_named(tmp_path: Path, column: str) -> None:
    write_cohort(tmp_path / "mortality24" / "d", DYN, OUTCOME.drop(column))
    with pytest.raises(DataError, match=rf"outc.parquet: column '{column}' is missing"):
        MORTALITY.index(tmp_path)


def test_a_stay_listed_twice_is_refused(tmp_path: Path) -> None:
    write_cohort(tmp_path / "mortality24" / "d", DYN, pl.concat([OUTCOME, OUTCOME.head(1)]))
    with pytest.raises(DataError, match="stay 3 is listed twice"):
        MORTALITY.index(tmp_path)


def test_an_hour_of_a_stay_listed_twice_is_refused(tmp_path: Path) -> None:
    hours = pl.DataFrame({"stay_id": [3, 3], "time": [timedelta(0)] * 2, "label": [False, True]})
    write_cohort(tmp_path / "sepsis" / "d", DYN, hours)
    with pytest.raises(DataError, match="stay 3 is listed twice"):
        SEPSIS.index(tmp_path)


def test_a_stay_without_rows_is_refused(tmp_path: Path) -> None:
    write_cohort(tmp_path / "mortality24" / "d", DYN.filter(pl.col("stay_id") == 5), OUTCOME)
    with pytest.raises(DataError, match="stay 3 has an outcome but no row"):
        load_first(tmp_path)


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "mortality24" / "d"
    write_cohort(folder, DYN, OUTCOME)
    path = folder / "dyn.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"dyn.parquet: not a parquet table"):
        load_first(tmp_path)


@pytest.mark.parametrize("file", ["dyn.parquet", "outc.parquet"])
def test_a_missing_table_is_named(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "mortality24" / "d"
    write_cohort(folder, DYN, OUTCOME)
    (folder / file).unlink()
    with pytest.raises(DataError, match=rf"{file}: the file is missing"):
        load_first(tmp_path)


@pytest.mark.parametrize(
    ("dyn", "message"),
    [
        (DYN.with_columns(time=pl.lit(0.0)), "'time' is Float64"),
        (DYN.with_columns(hr=pl.lit("fast")), "not a number"),
        (DYN.with_columns(stay_id=pl.lit("three")), "'stay_id' is String"),
    ],
)
def test_a_column_of_another_type_is_named(tmp_path: Path, dyn: pl.DataFrame, message: str) -> None:
    write_cohort(tmp_path / "mortality24" / "d", dyn, OUTCOME)
    with pytest.raises(DataError, match=message):
        load_first(tmp_path)


@pytest.mark.parametrize("label", [pl.lit(2), pl.lit("yes"), pl.lit(0.5)])
def test_a_label_that_is_not_binary_is_refused(tmp_path: Path, label: pl.Expr) -> None:
    write_cohort(tmp_path / "mortality24" / "d", DYN, OUTCOME.with_columns(label=label))
    with pytest.raises(DataError, match="'label'"):
        MORTALITY.index(tmp_path)


def test_no_cohort_tells_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="medfed data synth yaib-sepsis"):
        SEPSIS.locate(tmp_path)
