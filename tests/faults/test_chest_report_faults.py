"""Damaged MIMIC-CXR and COVID-19 repository folders end in a message that names the file, and quotes no report."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from medfed.core.catalog import MODALITIES
from medfed.core.errors import DataError
from medfed.data.decode import decode
from medfed.datasets.base import Dataset, write_twin
from medfed.datasets.covid19_repository import Covid19Repository
from medfed.datasets.mimic_cxr import MimicCxr
from medfed.study.data import TwinSpec

MIMIC, COVID = MimicCxr(), Covid19Repository()
TABLES = [f"mimic-cxr-2.0.0-{name}.csv.gz" for name in ("split", "metadata", "chexpert")]


def twin(dataset: Dataset, root: Path) -> Path:
    write_twin(dataset, root, TwinSpec(num_patients=6, image_size=32))
    return root


def message(call: Callable[[], object]) -> str:
    """Return the DataError's text; it must name a next step."""
    with pytest.raises(DataError) as error:
        call()
    assert "next step:" in str(error.value)
    return str(error.value)


def rewrite(path: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Change a gzipped table and leave it unpacked."""
    table = pl.read_csv(path, infer_schema=False)
    path.unlink()
    change(table).write_csv(path.with_suffix(""))


@pytest.mark.parametrize("table", TABLES)
def test_a_missing_table_is_named(tmp_path: Path, table: str) -> None:
    (twin(MIMIC, tmp_path) / table).unlink()
    text = message(lambda: MIMIC.index(tmp_path))
    assert f"{table.removesuffix('.gz')}: the file is missing" in text


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[: len(content) // 2], "cannot be read"),
        (lambda content: b"dicom_id,study_id\n", "not a gzip file"),
        (lambda content: b"", "not a gzip file"),
        (lambda content: content[:-8] + bytes([content[-8] ^ 1]) + content[-7:], "cannot be read"),
    ],
    ids=["cut", "text", "empty", "flipped"],
)
def test_a_damaged_gzip_file_is_named(tmp_path: Path, table: str, damage: Callable[[bytes], bytes], words: str) -> None:
    path = twin(MIMIC, tmp_path) / table
    path.write_bytes(damage(path.read_bytes()))
    text = message(lambda: MIMIC.index(tmp_path))
    assert f"{table}: " in text
    assert words in text


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (TABLES[0], "split"),
        (TABLES[0], "subject_id"),
        (TABLES[1], "ViewPosition"),
        (TABLES[2], "Pleural Effusion"),
    ],
)
def test_a_missing_column_is_named(tmp_path: Path, table: str, column: str) -> None:
    rewrite(twin(MIMIC, tmp_path) / table, lambda rows: rows.drop(column))
    text = message(lambda: MIMIC.index(tmp_path))
    assert table.removesuffix(".gz") in text
    assert f"column {column!r} is missing" in text


@pytest.mark.parametrize(
    ("table", "column", "value", "words"),
    [
        (TABLES[0], "split", "holdout", "line 2: 'holdout' is not allowed; allowed: train, validate, test"),
        (TABLES[0], "subject_id", "../secret", "column 'subject_id', line 2: '../secret' is not an id"),
        (TABLES[0], "dicom_id", "../../x", "column 'dicom_id', line 2: '../../x' is not an id"),
        (TABLES[0], "study_id", None, "column 'study_id', line 2: None is not an id"),
        (TABLES[2], "Edema", "2.0", "column 'Edema', line 2: '2.0' is not allowed"),
    ],
)
def test_an_unheard_of_value_is_refused(tmp_path: Path, table: str, column: str, value: str | None, words: str) -> None:
    def change(rows: pl.DataFrame) -> pl.DataFrame:
        first = pl.int_range(rows.height) == 0
        return rows.with_columns(pl.when(first).then(pl.lit(value, pl.Utf8)).otherwise(column).alias(column))

    rewrite(twin(MIMIC, tmp_path) / table, change)
    assert words in message(lambda: MIMIC.index(tmp_path))


def test_a_study_labelled_twice_is_refused(tmp_path: Path) -> None:
    rewrite(twin(MIMIC, tmp_path) / TABLES[2], lambda rows: pl.concat([rows, rows.head(1)]))
    assert "a study is listed twice" in message(lambda: MIMIC.index(tmp_path))


def test_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    one = pl.col("study_id") == pl.col("study_id").first()

    def change(rows: pl.DataFrame) -> pl.DataFrame:
        other = rows.filter(one).with_columns(
            study_id=pl.lit("59999999"),
            split=pl.when(pl.col("split") == "test").then(pl.lit("train")).otherwise(pl.lit("test")),
        )
        return pl.concat([rows, other])

    rewrite(twin(MIMIC, tmp_path) / TABLES[0], change)
    assert "is in the splits" in message(lambda: decode(MIMIC, tmp_path, MODALITIES))


def test_an_unreadable_film_is_named(tmp_path: Path) -> None:
    film = next(twin(MIMIC, tmp_path).rglob("*-0.jpg"))
    record = next(row for row in MIMIC.index(tmp_path).iter_rows(named=True) if row["files"][0] in str(film))
    film.write_bytes(film.read_bytes()[:200])
    assert str(film) in message(lambda: MIMIC.load(tmp_path, record))


def test_an_unreadable_report_is_named_and_not_quoted(tmp_path: Path) -> None:
    report = next(twin(MIMIC, tmp_path).rglob("*.txt"))
    record = next(row for row in MIMIC.index(tmp_path).iter_rows(named=True) if row["files"][1] in str(report))
    report.write_bytes("FINDINGS: wife saw a médecin".encode("latin-1"))
    with pytest.raises(DataError) as error:
        MIMIC.load(tmp_path, record)
    shown = "".join(traceback.format_exception(error.value))
    assert str(report) in shown
    assert "not UTF-8 text (byte 22)" in shown
    assert "decin" not in shown
    assert error.value.__cause__ is None
    assert error.value.__context__ is None, "the decoder's error holds the whole report"


def test_a_study_without_film_and_report_is_an_error_that_can_be_skipped(tmp_path: Path) -> None:
    record = MIMIC.index(twin(MIMIC, tmp_path)).row(0, named=True)
    for file in record["files"]:
        (tmp_path / file).unlink(missing_ok=True)
    text = message(lambda: decode(MIMIC, tmp_path, MODALITIES))
    assert "neither the film nor a report" in text
    kept = decode(MIMIC, tmp_path, MODALITIES, skip_bad=True)
    assert [problem.example for problem in kept.skipped] == [record["example"]]


# --- COVID-19 Image Repository ---


def change_covid(root: Path, **cells: str | None) -> None:
    path = root / "data.csv"
    table = pl.read_csv(path, infer_schema=False)
    first = pl.int_range(table.height) == 0
    table.with_columns(
        pl.when(first).then(pl.lit(value, pl.Utf8)).otherwise(name).alias(name) for name, value in cells.items()
    ).write_csv(path)


@pytest.mark.parametrize("value", ["high", "nan", "1,5"])
def test_a_value_that_is_no_number_is_named(tmp_path: Path, value: str) -> None:
    change_covid(twin(COVID, tmp_path), crp_val=value)
    assert f"column 'crp_val': {value!r} is not a number" in message(lambda: COVID.index(tmp_path))


@pytest.mark.parametrize("column", ["patient_id", "image_id"])
def test_an_empty_id_is_named(tmp_path: Path, column: str) -> None:
    change_covid(twin(COVID, tmp_path), **{column: None})
    assert f"column {column!r} has an empty cell" in message(lambda: COVID.index(tmp_path))


def test_a_missing_column_of_the_table_is_named(tmp_path: Path) -> None:
    path = twin(COVID, tmp_path) / "data.csv"
    pl.read_csv(path).drop("po2_offset").write_csv(path)
    assert "column 'po2_offset' is missing" in message(lambda: COVID.index(tmp_path))


def test_a_missing_film_is_named_with_its_table(tmp_path: Path) -> None:
    (twin(COVID, tmp_path) / "png" / "00000001.png").unlink()
    text = message(lambda: decode(COVID, tmp_path, MODALITIES))
    assert "00000001.png: the image is missing, but data.csv names it" in text


def test_values_of_later_days_and_beyond_the_assay_do_not_count(tmp_path: Path) -> None:
    cells = {"crp_offset": "1.0", "crp_val": "9.0", "ldh_offset": "0.0", "ldh_val": "300", "po2_offset": "-2.0"}
    change_covid(twin(COVID, tmp_path), **cells, po2_val="-inf", icu_admission_offset="3.0", death_offset=None)
    record = COVID.index(tmp_path).row(0, named=True)
    labs = COVID.load(tmp_path, record)["covid-labs"]
    shown = dict(zip(MODALITIES["covid-labs"].variables, MODALITIES["covid-labs"].prepare(labs)[0], strict=False))  # type: ignore[attr-defined]
    assert np.isnan(labs[0, 0]), "CRP of the day after"
    assert shown["ldh"] == 300
    assert np.isneginf(labs[0, 7])
    assert not MODALITIES["covid-labs"].prepare(labs)[0, 8 + 7]
    assert (record["icu"], record["died"]) == (1, 0)


def test_real_extract(real_data: Path) -> None:
    root = COVID.locate(real_data)
    decoded = decode(COVID, root, MODALITIES)
    assert root == real_data / "covid19-image-repository"
    assert decoded.target("icu").tolist().count(1) == 21
    assert decoded.target("died").tolist().count(1) == 3
    assert decoded.present["image"].sum() == 51
    flags = decoded.samples["covid-labs"][:, 0, 8:]
    assert 0 < flags[:, 0].sum() < 37, "37 films have a CRP, some of a later day"
