"""Files that a question is about: what a file is, and how it becomes raw arrays by modality.

An option is named for the kind of file. ``image`` is a PNG, JPEG or DICOM file, ``ecg`` a WFDB record (a ``.hea``
header with its ``.dat`` file next to it). ``icu`` is a CSV or parquet table of hours × variables. A table fills every
time series that the run reads. Arrays are those that datasets hand over: physical units, any size.

ECG records may be named in capital or small letters. The library opens ``NAME.hea`` and the names written in it, in
ASCII. Files with other names are read from a copy under plain names, in a folder of the user's own, removed at once.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import numpy as np
import polars as pl
from jaxtyping import Float, Shaped

from medfed.core.errors import DataError, StudyError
from medfed.datasets.dicom import read_dicom
from medfed.datasets.images import read_grey
from medfed.datasets.tables import read_csv, read_parquet
from medfed.datasets.wfdb_records import read_wfdb
from medfed.modalities.timeseries import TimeSeriesModality
from medfed.study.study import Study

Kind = Literal["image", "ecg", "icu"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The kinds of files, named as the options are."""
SUFFIXES: Mapping[str, Kind] = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".dcm", ".dicom"), "image"),
    **dict.fromkeys((".hea", ".dat"), "ecg"),
    **dict.fromkeys((".csv", ".parquet"), "icu"),
}

HOUR = "hour"
"""A table's optional column: hours since admission. Without it rows are the hours 0, 1, 2, … in turn."""
DICOM_MARK = slice(128, 132)
MAX_HOURS = 24 * 366
"""Of a table: no stay is longer, and a longer one would take memory without end."""


def kind_of(path: Path) -> Kind:
    """Tell by its name what a file is, or by its mark of DICOM; raise DataError if it is unclear."""
    if path.suffix.lower() in SUFFIXES:
        return SUFFIXES[path.suffix.lower()]
    if path.is_file() and _is_dicom(path):
        return "image"
    hint = f"give a picture, an ECG or an ICU table: {' '.join(SUFFIXES)}"
    raise DataError("cannot tell what this file is", where=path.name, hint=hint)


def modalities_of(study: Study, kind: Kind) -> tuple[str, ...]:
    """Return the modalities of the run that a file of ``kind`` fills; none if the run reads no such files."""
    if kind == "icu":
        return tuple(name for name in study.encoders if isinstance(study.modality(name), TimeSeriesModality))
    return (kind,) if kind in study.encoders else ()


def require_kind(study: Study, kind: Kind) -> None:
    """Raise :class:`StudyError` if the run cannot read files of ``kind``."""
    if not modalities_of(study, kind):
        known = ", ".join(f"--{other}" for other in KINDS if modalities_of(study, other))
        hint = f"it reads {known}; or use a run whose study trains a task on such files"
        raise StudyError(f"this run has no encoder for --{kind}", where=f"study {study.name!r}", hint=hint)


def read_files(study: Study, files: Mapping[Kind, Path]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Decode ``files`` to raw arrays by modality.

    Raises StudyError if the run does not read such files. Raises DataError if one is absent, may not be read, is
    damaged, or not what it should be.
    """
    samples: dict[str, Shaped[np.ndarray, "..."]] = {}
    for kind, path in files.items():
        require_kind(study, kind)
        try:
            samples |= _read(study, kind, path)
        except OSError as error:  # a name that is too long, no permission, a disk that fails
            problem = f"the file cannot be read ({error.strerror or type(error).__name__})"
            raise DataError(problem, where=path, hint=f"check --{kind}") from error
    return samples


def parts_of(kind: Kind, path: Path) -> list[Path]:
    """Return the files that are read for ``path``: of an ECG all that its header names, if they are there."""
    try:
        if kind == "ecg" and path.is_file():
            header, signals = ecg_files(path)
            return [header, *signals.values()]
    except (DataError, OSError):
        pass
    return [path]


def read_table(study: Study, path: Path) -> dict[str, Float[np.ndarray, "hour variable"]]:
    """Read hours × variables; cells may be empty, and variables may be left out: they were not observed.

    Raises DataError if a column is unknown, a cell is no number, an hour is wrong, there is no row, or too many.
    """
    modalities = {name: study.modality(name) for name in modalities_of(study, "icu")}
    series = {name: one.variables for name, one in modalities.items() if isinstance(one, TimeSeriesModality)}
    known = sorted(variable for variables in series.values() for variable in variables)
    table = read_parquet(path, ()) if path.suffix.lower() == ".parquet" else read_csv(path, ())
    _require_known(table, known, path)
    numbers = table.select(_numbers(table[name], path) for name in table.columns)
    hours = _hours(numbers, path)
    raw = {}
    for name, variables in series.items():
        raw[name] = np.full((int(hours.max()) + 1, len(variables)), np.nan)
        for column, variable in enumerate(variables):
            if variable in numbers.columns:
                raw[name][hours, column] = numbers[variable].to_numpy()
    return raw


def _read(study: Study, kind: Kind, path: Path) -> Mapping[str, Shaped[np.ndarray, "..."]]:
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        raise DataError(what, where=path, hint=f"check --{kind}")
    if kind == "image":
        return {"image": read_dicom(path) if _is_dicom(path) else read_grey(path)}
    return {"ecg": read_record(path)} if kind == "ecg" else read_table(study, path)


def _require_known(table: pl.DataFrame, known: list[str], path: Path) -> None:
    for column in table.columns:
        if column not in known and column != HOUR:
            near = difflib.get_close_matches(column.lower(), known, n=1, cutoff=0.5)
            hint = f"{f'did you mean {near[0]!r}? ' if near else ''}known: {HOUR}, {', '.join(known)}"
            raise DataError(f"unknown column {column!r}", where=path, hint=hint)
    if not set(table.columns) - {HOUR}:
        raise DataError("no column of a variable", where=path, hint=f"known: {', '.join(known)}")
    if table.is_empty():
        raise DataError("the table has no row", where=path, hint="one row is one hour; the first is the admission's")
    if len(table) > MAX_HOURS:
        what = f"{len(table)} rows; {MAX_HOURS} hours are allowed"
        raise DataError(what, where=path, hint="one row is one hour of one stay")


def _numbers(column: pl.Series, path: Path) -> pl.Series:
    """Return the column as float64, NaN where nothing was observed."""
    filled = column.str.strip_chars().replace("", None) if column.dtype == pl.String else column
    numbers = filled.cast(pl.Float64, strict=False)
    if len(wrong := (filled.is_not_null() & numbers.is_null()).arg_true()):
        line = int(wrong[0]) + (2 if path.suffix.lower() == ".csv" else 1)
        hint = "write numbers with a decimal point, and leave a cell empty where nothing was measured"
        raise DataError(f"column {column.name!r}, line {line}: not a number", where=path, hint=hint)
    return numbers.fill_null(float("nan"))


def _hours(table: pl.DataFrame, path: Path) -> Shaped[np.ndarray, " row"]:
    if HOUR not in table.columns:
        return np.arange(len(table))
    hours: np.ndarray = table[HOUR].to_numpy()
    whole = np.isfinite(hours) & (hours >= 0) & (hours < MAX_HOURS) & (hours == np.floor(hours))
    if not whole.all() or len(np.unique(hours)) < len(hours):
        what = f"column {HOUR!r}: every row needs a whole hour since admission, and each hour stands once"
        raise DataError(what, where=path, hint=f"number the rows 0, 1, 2, …, or leave the column {HOUR!r} out")
    return hours.astype(np.int64)


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    with path.open("rb") as file:
        return file.read(DICOM_MARK.stop)[DICOM_MARK] == b"DICM"


def ecg_files(path: Path) -> tuple[Path, dict[str, Path]]:
    """Return the header of a record, and by the names in it the files of samples; ``path`` is one of these files.

    Raises DataError if a file is not there, or the header names a file elsewhere or other records.
    """
    header = _same_name(path.with_suffix(".hea"))
    if not header.is_file():
        raise DataError("the header is missing", where=header, hint="a record is a .hea and a .dat file: give both")
    signals = {}
    for name in signal_names(header.read_bytes(), header):
        if not is_plain(name):
            what, hint = "the header names a file in another folder", "keep both files in one folder"
            raise DataError(what, where=header, hint=hint)
        signals[name] = _same_name(header.parent / name)
        if not signals[name].is_file():
            what = f"the header belongs to {name}, which is not next to it"
            raise DataError(what, where=header, hint="give both files")
    return header, signals


def read_record(path: Path) -> Float[np.ndarray, "lead time"]:
    """Read a WFDB record by its header; a header that names files elsewhere is refused.

    Raises DataError if a file is missing or damaged, or the record is not a 12-lead ECG at 100 Hz in mV.
    """
    header, signals = ecg_files(path)
    signal = next(iter(signals.values()), header.with_suffix(".dat"))
    if header.suffix == ".hea" and all(name.isascii() and file.name == name for name, file in signals.items()):
        return read_wfdb(header, signal)
    with TemporaryDirectory(prefix="medfed-ecg-") as folder:
        copy = _copy(header, signals, Path(folder))
        try:
            return read_wfdb(copy, next(iter(copy.parent.glob("*.dat")), copy.with_suffix(".dat")))
        except DataError as error:
            where = header if error.where == copy else signal
            raise DataError(error.what.replace(f"{folder}/", ""), where=where, hint=error.hint) from error


def signal_names(header: bytes, where: str | Path) -> list[str]:
    """Return the names of the files with the samples, by the header; raise DataError if it lists other records."""
    kept = [line.split() for line in header.decode("utf-8", errors="replace").splitlines() if _counts(line)]
    if kept and "/" in kept[0][0]:
        raise DataError("a record of several segments", where=where, hint="export it as one segment")
    return list(dict.fromkeys(words[0] for words in kept[1:]))


def is_plain(name: str) -> bool:
    """Tell whether ``name`` is that of a file and leads into no other folder."""
    return Path(name).name == name != ".." and not set(name) & set("\\:\0")


def _copy(header: Path, signals: Mapping[str, Path], folder: Path) -> Path:
    """Copy the record under plain names; return the header."""
    plain = {name: f"signal{place}.dat" for place, name in enumerate(signals)}
    for name, file in signals.items():
        shutil.copyfile(file, folder / plain[name])
    lines = [line for line in header.read_text(encoding="utf-8", errors="replace").splitlines() if _counts(line)]
    words = [line.split(maxsplit=1) for line in lines]
    for line in words:
        line[0] = plain[line[0]] if line is not words[0] else "record"
    copy = folder / "record.hea"
    copy.write_text("".join(f"{' '.join(line)}\n" for line in words), encoding="utf-8")
    return copy


def _counts(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


def _same_name(path: Path) -> Path:
    """Return ``path``; where it is not there, the one file next to it whose name differs in case alone."""
    if path.is_file():
        return path
    alike = [other for other in path.parent.iterdir() if other.name.lower() == path.name.lower()]
    return alike[0] if len(alike) == 1 else path
