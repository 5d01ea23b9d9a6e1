"""Files become the arrays that datasets hand over; what is wrong is said with the file's name and the next step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset

from medfed.ask.inputs import MAX_HOURS, Kind, kind_of, parts_of, read_files
from medfed.core.errors import DataError, MedfedError
from medfed.datasets.images import write_grey
from medfed.datasets.wfdb_records import read_wfdb
from medfed.modalities.signal import LEADS
from medfed.study.study import Study, study_of
from support.studies import QUICK


@pytest.fixture(scope="module")
def study() -> Study:
    return study_of({**QUICK}, "quick")


def dicom(path: Path) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made = pydicom.Dataset()
    made.file_meta = meta
    made.SOPClassUID, made.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, pydicom.uid.generate_uid()
    made.Rows, made.Columns, made.SamplesPerPixel, made.PhotometricInterpretation = 12, 10, 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.PixelData = (np.arange(120) % 256).astype(np.uint8).tobytes()
    made.save_as(path, enforce_file_format=True)
    return path


def record(folder: Path, name: str = "r1", leads: tuple[str, ...] = LEADS) -> Path:
    import wfdb

    values = np.random.default_rng(0).normal(size=(500, len(leads)))
    wfdb.wrsamp(
        name, fs=100, units=["mV"] * len(leads), sig_name=list(leads), p_signal=values, fmt=["16"] * len(leads),
        write_dir=str(folder),
    )  # fmt: skip
    return folder / f"{name}.hea"


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def test_a_dicom_file_is_known_without_a_suffix(study: Study, tmp_path: Path) -> None:
    bare = dicom(tmp_path / "IM0001")
    assert kind_of(bare) == "image"
    assert np.array_equal(
        read_files(study, {"image": bare})["image"], np.arange(120, dtype=np.float32).reshape(12, 10) / np.float32(255)
    )


def test_a_record_is_read_by_its_header_or_its_signal(study: Study, tmp_path: Path) -> None:
    header = record(tmp_path)
    wanted = read_wfdb(header, header.with_suffix(".dat"))
    for path in (header, header.with_suffix(".dat")):
        assert np.array_equal(read_files(study, {"ecg": path})["ecg"], wanted)


@pytest.mark.parametrize("named", ["r1.DAT", "r1.dat", "größe.dat"])
def test_a_record_is_read_whatever_the_case_of_its_files(study: Study, tmp_path: Path, named: str) -> None:
    (tmp_path / "plain").mkdir()
    header = record(tmp_path / "plain")
    wanted = read_files(study, {"ecg": header})["ecg"]
    text = header.read_text(encoding="utf-8").replace("r1.dat", named)
    (tmp_path / "r1.HEA").write_text(f"# made on paper\n\n{text}", encoding="utf-8")
    kept = tmp_path / ("größe.DAT" if named == "größe.dat" else "r1.DAT")
    kept.write_bytes(header.with_suffix(".dat").read_bytes())
    assert np.array_equal(read_files(study, {"ecg": tmp_path / "r1.HEA"})["ecg"], wanted)
    assert parts_of("ecg", tmp_path / "r1.HEA") == [tmp_path / "r1.HEA", kept]


def test_of_a_copied_record_the_users_own_file_is_told(study: Study, tmp_path: Path) -> None:
    header = record(tmp_path).rename(tmp_path / "r1.HEA")
    cut(tmp_path / "r1.dat", 1001)
    with pytest.raises(DataError, match="1001 bytes") as caught:
        read_files(study, {"ecg": header})
    assert caught.value.where == tmp_path / "r1.dat"
    header.write_bytes(b"")
    with pytest.raises(DataError, match="missing"):
        read_files(study, {"ecg": header})


def test_a_table_fills_every_series_and_what_is_absent_was_not_observed(study: Study, tmp_path: Path) -> None:
    path = table(tmp_path / "stay.csv", "lact,hr\n1.5,80\n,\n 2 ,90\n")
    raw = read_files(study, {"icu": path})
    assert list(raw) == ["vitals", "labs", "input", "output"]
    assert np.array_equal(raw["vitals"][:, 0], [80, np.nan, 90], equal_nan=True)
    lactate = study.modality("labs").variables.index("lact")
    assert np.array_equal(raw["labs"][:, lactate], [1.5, np.nan, 2], equal_nan=True)
    assert np.isfinite(raw["labs"]).sum() == 2
    assert np.isnan(raw["output"]).all()


def test_hours_place_the_rows(study: Study, tmp_path: Path) -> None:
    path = table(tmp_path / "stay.csv", "hour,hr\n5,90\n0,80\n")
    hr = read_files(study, {"icu": path})["vitals"][:, 0]
    assert np.array_equal(hr, [80, *[np.nan] * 4, 90], equal_nan=True)


def test_parquet_says_what_csv_says(study: Study, tmp_path: Path) -> None:
    frame = pl.DataFrame({"hr": [80, None, 90], "temp": [36.5, 37.0, None]})
    frame.write_csv(tmp_path / "stay.csv")
    frame.write_parquet(tmp_path / "stay.parquet")
    read = [read_files(study, {"icu": tmp_path / f"stay.{kind}"})["vitals"] for kind in ("csv", "parquet")]
    assert np.array_equal(*read, equal_nan=True)
    assert np.isfinite(read[0]).sum() == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hr,heartrate\n80,80\n", "unknown column 'heartrate'.*\n.*known: hour, "),
        ("HR\n80\n", "unknown column 'HR'.*\n.*did you mean 'hr'"),
        ("hr\n80\nhigh\n", "column 'hr', line 3: not a number"),
        ("hour\n0\n", "no column of a variable"),
        ("hr\n", "no row"),
        ("hour,hr\n0,80\n0,81\n", "each hour stands once"),
        ("hour,hr\n0.5,80\n", "whole hour"),
        ("hour,hr\n-1,80\n", "whole hour"),
        ("hour,hr\n9999999999,80\n", "whole hour"),
        ("hr,resp\n80,1,2\n", "not a CSV table"),
        ("", "not a CSV table"),
    ],
)
def test_a_wrong_table_is_told_by_name_and_line(study: Study, tmp_path: Path, text: str, message: str) -> None:
    path = table(tmp_path / "stay.csv", text)
    with pytest.raises(DataError, match=message) as caught:
        read_files(study, {"icu": path})
    assert str(caught.value.where) == str(path)
    assert caught.value.hint


def test_a_table_of_endless_rows_is_refused_with_or_without_hours(study: Study, tmp_path: Path) -> None:
    longest = table(tmp_path / "longest.csv", "hr\n" + "80\n" * MAX_HOURS)
    assert len(read_files(study, {"icu": longest})["vitals"]) == MAX_HOURS
    longer = table(tmp_path / "longer.csv", "hr\n" + "80\n" * (MAX_HOURS + 1))
    with pytest.raises(DataError, match=rf"longer\.csv: {MAX_HOURS + 1} rows"):
        read_files(study, {"icu": longer})


@pytest.mark.parametrize("kind", ["image", "ecg", "icu"])
def test_what_the_system_refuses_to_read_is_told_too(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    with pytest.raises(DataError, match=r"cannot be read.*File name too long") as caught:
        read_files(study, {kind: tmp_path / ("x" * 300)})
    assert caught.value.hint == f"check --{kind}"
    with pytest.raises(DataError, match="a folder, not a file"):
        read_files(study, {kind: tmp_path})

    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", forbidden)
    with pytest.raises(DataError, match=r"a\.dcm: the file cannot be read \(Permission denied\)"):
        read_files(study, {kind: tmp_path / "a.dcm"})
    assert parts_of(kind, tmp_path / "a.dcm") == [tmp_path / "a.dcm"]


def broken(folder: Path) -> Mapping[str, tuple[Kind, Path, str]]:
    """Name → kind, file and what is said of it."""
    write_grey(folder / "cut.png", np.random.default_rng(0).random((40, 40)).astype(np.float32))
    record(folder, "cut-record")
    cut(folder / "cut-record.dat", 1001)
    record(folder, "alone")
    (folder / "alone.dat").unlink()
    escaping = record(folder, "escaping")
    escaping.write_text(escaping.read_text().replace("escaping.dat", "../escaping.dat"))
    segments = table(folder / "segments.hea", "segments/2 12 100 1000\na 500\nb 500\n")
    return {
        "absent": ("image", folder / "nothing.png", "no such file"),
        "cut dicom": ("image", cut(dicom(folder / "cut.dcm"), 400), "pixels"),
        "no dicom": ("image", table(folder / "text.dcm", "hello"), "not a DICOM file"),
        "cut png": ("image", cut(folder / "cut.png", 700), "damaged or cut short"),
        "empty": ("image", table(folder / "empty.png", ""), "empty"),
        "cut record": ("ecg", folder / "cut-record.hea", "1001 bytes"),
        "header alone": ("ecg", folder / "alone.hea", "alone.dat, which is not next to it"),
        "signal alone": ("ecg", table(folder / "signal.dat", "abc"), "header is missing"),
        "another folder": ("ecg", escaping, "another folder"),
        "segments": ("ecg", segments, "several segments"),
        "leads": ("ecg", record(folder, "leads", LEADS[:6]), "lead V1.* is missing"),
        "no header": ("ecg", table(folder / "words.hea", "these are words\n"), "not a readable WFDB record|missing"),
    }


@pytest.mark.parametrize(
    "name",
    ["absent", "cut dicom", "no dicom", "cut png", "empty", "cut record", "header alone", "signal alone",
     "another folder", "segments", "leads", "no header"],
)  # fmt: skip
def test_a_broken_file_is_named_with_the_next_step(study: Study, tmp_path: Path, name: str) -> None:
    kind, path, message = broken(tmp_path)[name]
    with pytest.raises(MedfedError, match=message) as caught:
        read_files(study, {kind: path})
    assert path.stem in str(caught.value.where)
    assert caught.value.hint


def test_what_a_file_is_must_show(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"notes\.txt: cannot tell what this file is"):
        kind_of(table(tmp_path / "notes.txt", "hello"))


def test_where_polars_panics_on_a_damaged_table_the_file_is_told(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panics(path: Path) -> None:
        raise pl.exceptions.PanicException("called `Result::unwrap()` on an `Err` value")

    path = table(tmp_path / "stay.parquet", "PAR1")
    with pytest.raises(DataError, match=r"stay\.parquet: not a parquet table"):
        read_files(study, {"icu": path})
    monkeypatch.setattr(pl, "read_parquet", panics)  # it does so on about one in 250 tables with a flipped byte
    with pytest.raises(DataError, match=r"stay\.parquet: not a parquet table"):
        read_files(study, {"icu": path})
