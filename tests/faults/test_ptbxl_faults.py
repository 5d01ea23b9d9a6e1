"""Broken PTB-XL folders: each fault is answered with the file, the row or lead, and a next step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from medfed.core.errors import DataError
from medfed.data.decode import validate_index
from medfed.datasets.base import Record, write_twin
from medfed.datasets.ptbxl import PTBXL
from medfed.study.data import TwinSpec
from support.native_files import write_ptbxl

DATASET = PTBXL()


@pytest.fixture
def record(tmp_path: Path) -> Record:
    write_twin(DATASET, tmp_path, TwinSpec(num_patients=1))
    return DATASET.index(tmp_path).row(0, named=True)


def truncated(header: Path, signal: Path) -> None:
    signal.write_bytes(signal.read_bytes()[:-4001])


def empty(header: Path, signal: Path) -> None:
    signal.write_bytes(b"")


def cut_header(header: Path, signal: Path) -> None:
    header.write_text("\n".join(header.read_text().splitlines()[:7]) + "\n")


def garbage_header(header: Path, signal: Path) -> None:
    header.write_bytes(b"\x00\x01\xff not a header")


@pytest.mark.parametrize("damage", [truncated, empty, cut_header, garbage_header])
def test_a_damaged_record_is_named(tmp_path: Path, record: Record, damage: Callable[[Path, Path], None]) -> None:
    header, signal = (tmp_path / file for file in record["files"])
    damage(header, signal)
    with pytest.raises(DataError, match=rf"(?s){signal.name}.*next step: .*download both again") as caught:
        DATASET.load(tmp_path, record)
    assert "WFDB" in caught.value.what


@pytest.mark.parametrize("suffix", [".hea", ".dat"])
def test_half_a_record_is_named(tmp_path: Path, record: Record, suffix: str) -> None:
    lost = next(tmp_path / file for file in record["files"] if file.endswith(suffix))
    lost.unlink()
    with pytest.raises(DataError, match="missing") as caught:
        DATASET.load(tmp_path, record)
    assert caught.value.where == lost


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0 V6", "0 VX", "lead V6 is missing"),
        ("0 V6", "0 V5", "lead V6 is missing"),
        ("12 100 1000", "12 500 1000", "500 Hz"),
        ("/mV", "/uV", "mV is needed"),
    ],
)
def test_another_kind_of_record_is_refused(tmp_path: Path, record: Record, old: str, new: str, message: str) -> None:
    header = tmp_path / record["files"][0]
    header.write_text(header.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        DATASET.load(tmp_path, record)


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("scp_codes", "{'NORM': 100.0"),
        ("scp_codes", "__import__('os').getcwd()"),
        ("scp_codes", "['NORM']"),
        ("scp_codes", ""),
        ("patient_id", "anonymous"),
        ("patient_id", "1.5"),
        ("patient_id", "nan"),
        ("strat_fold", "11"),
        ("strat_fold", "inf"),
        ("ecg_id", ""),
        ("filename_lr", "../../etc/passwd"),
        ("filename_lr", ""),
    ],
)
def test_a_bad_cell_is_named_with_its_line(tmp_path: Path, column: str, cell: str) -> None:
    with pytest.raises(DataError, match=rf"ptbxl_database.csv: column '{column}', line 2"):
        DATASET.index(write_ptbxl(tmp_path, **{column: cell}))


def test_a_table_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = write_ptbxl(tmp_path) / "ptbxl_database.csv"
    path.write_bytes(path.read_bytes() + "ST-Veränderung".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        DATASET.index(tmp_path)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = write_ptbxl(tmp_path) / "ptbxl_database.csv"
    pl.read_csv(path, infer_schema=False).drop("extra_beats").write_csv(path)
    with pytest.raises(DataError, match="'extra_beats'"):
        DATASET.index(tmp_path)


def test_a_patient_in_two_folds_is_refused(tmp_path: Path) -> None:
    path = write_ptbxl(tmp_path) / "ptbxl_database.csv"
    row = pl.read_csv(path, infer_schema=False)
    pl.concat([row, row.with_columns(ecg_id=pl.lit("8"), strat_fold=pl.lit("10"))]).write_csv(path)
    index = DATASET.index(tmp_path)
    with pytest.raises(DataError, match="'ptbxl:15709' is in the splits private and test"):
        validate_index(DATASET, tmp_path, index)
