"""Tables on disk: CSV (gzipped or not) and parquet, read as text columns and checked cell by cell.

Only the wanted columns and rows are kept, so a hundred million laboratory values fit in memory. A value outside its
column's list is an error, never a negative. Every check raises a DataError that names file, column and line. Columns
that several datasets share are here too: CheXpert's findings, and the ids of NIH patients.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from medfed.core.errors import DataError
from medfed.datasets.base import AGAIN, COMPARE, COMPLETE, require, require_file

__all__ = ["read_csv", "read_parquet", "require_columns"]

POLARS_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
"""Errors of polars on damaged files; a panic is not even an Exception."""
GZIP_MAGIC = b"\x1f\x8b"
CHEXPERT_LABELS = {
    "atelectasis": "Atelectasis",
    "cardiomegaly": "Cardiomegaly",
    "consolidation": "Consolidation",
    "edema": "Edema",
    "enlarged_cardiomediastinum": "Enlarged Cardiomediastinum",
    "fracture": "Fracture",
    "lung_lesion": "Lung Lesion",
    "lung_opacity": "Lung Opacity",
    "no_finding": "No Finding",
    "pleural_effusion": "Pleural Effusion",
    "pleural_other": "Pleural Other",
    "pneumonia": "Pneumonia",
    "pneumothorax": "Pneumothorax",
    "support_devices": "Support Devices",
}
"""Target → column of the 14 labels that CheXpert's rules read off a report (Irvin et al. 2019, Table 1)."""
PRESENT, ABSENT, UNCERTAIN, NOT_MENTIONED = "1.0", "0.0", "-1.0", ""
CHECK_SUM = "download the file again and compare its checksum with SHA256SUMS.txt"


class FileState(NamedTuple):
    """A file, its time and size: the key under which its content may be kept in memory."""

    path: Path
    mtime_ns: int
    size: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Return the state of ``path`` now; raise DataError if there is no such file."""
        require_file(path)
        stat = path.stat()
        return cls(path, stat.st_mtime_ns, stat.st_size)


def read_csv(path: Path, columns: tuple[str, ...], **options: Any) -> pl.DataFrame:
    """Read a CSV as text columns, requiring ``columns``; empty cells are null.

    Raises DataError if the file is absent, is not UTF-8, has no header, or lacks a column.
    """
    require_file(path)
    try:
        path.read_bytes().decode("utf-8")
        table = pl.read_csv(path, infer_schema=False, **options)
    except UnicodeDecodeError as error:
        hint = "convert it: iconv -f LATIN1 -t UTF-8"
        raise DataError(f"not UTF-8 text (byte {error.start})", where=path, hint=hint) from error
    except POLARS_ERRORS as error:
        raise DataError(f"not a CSV table: {_first_line(error)}", where=path, hint=AGAIN) from error
    return require_columns(table, columns, path)


def read_parquet(path: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    """Read a parquet table; raise DataError if the file is absent, is not parquet, or lacks one of ``columns``."""
    require_file(path)
    try:
        table = pl.read_parquet(path)
    except (*POLARS_ERRORS, OSError) as error:
        raise DataError(f"not a parquet table: {_first_line(error)}", where=path, hint=AGAIN) from error
    return require_columns(table, columns, path)


def find_table(root: Path, name: str) -> Path:
    """Return ``root/name``, gzipped (``name.gz``, taken first) or not; raise DataError if neither is there."""
    for path in (root / f"{name}.gz", root / name):
        if path.is_file():
            return path
    raise DataError("the file is missing, gzipped (.gz) or not", where=root / name, hint=COMPLETE)


def read_table(root: Path, name: str, columns: tuple[str, ...], rows: pl.Expr | bool = True) -> pl.DataFrame:
    """Read ``columns`` of a large table as text, of the ``rows`` that meet a condition; empty cells are null.

    Raises DataError if the table (see :func:`find_table`) is absent, not gzip or cut short, not UTF-8, not CSV, or
    lacks a column.
    """
    path = find_table(root, name)
    if path.suffix == ".gz":
        with path.open("rb") as file:
            require(file.read(2) == GZIP_MAGIC, "not a gzip file", path, CHECK_SUM)
    try:
        table = pl.scan_csv(path, infer_schema=False, null_values=[""])
        require_columns(table.head(0).collect(), columns, path)
        return table.select(columns).filter(rows).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:  # its text may quote a patient's line
        raise DataError(f"not a UTF-8 CSV table ({type(error).__name__})", where=path, hint=AGAIN) from error
    except OSError as error:
        raise DataError(f"the file cannot be read ({error})", where=path, hint=CHECK_SUM) from error


def numbers(column: pl.Series, path: Path) -> pl.Series:
    """Return a text column as Float64, each cell a number or empty (null)."""
    parsed = column.str.strip_chars().cast(pl.Float64, strict=False)
    return _parsed(column, parsed.set(parsed.is_nan().fill_null(False), None), "a number", path)


def whole_numbers(table: pl.DataFrame, column: str, path: Path, hint: str = COMPARE) -> pl.Series:
    """Return a text column as Int64, each cell a whole number; pandas writes some of them as ``1.0``."""
    parsed = table[column].cast(pl.Float64, strict=False)
    require_cells(table[column], parsed.is_finite() & (parsed == parsed.round()), "is not a whole number", path, hint)
    return parsed.cast(pl.Int64)


def times(column: pl.Series, path: Path) -> pl.Series:
    """Return a text column as Datetime, each cell such as ``2180-07-23 14:00:00`` or empty (null)."""
    return _parsed(column, column.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False), "a time", path)


def flag(condition: pl.Expr) -> pl.Expr:
    """Return a target column: 1 where ``condition`` holds, else 0."""
    return condition.fill_null(False).cast(pl.Int8)


def constant_files(files: list[str]) -> pl.Expr:
    """Return the index column ``files`` of a dataset whose examples all lie in the same files."""
    return pl.lit(pl.Series([files])).first().alias("files")


def require_columns(table: pl.DataFrame, columns: tuple[str, ...], path: Path) -> pl.DataFrame:
    """Return ``table``, which must have ``columns``."""
    missing = ", ".join(repr(column) for column in columns if column not in table.columns)
    require(not missing, f"column {missing} is missing; found {', '.join(table.columns)}", path, COMPARE)
    return table


def require_filled(table: pl.DataFrame, columns: tuple[str, ...], path: Path) -> None:
    """Check that no cell of ``columns`` is empty."""
    for column in columns:
        filled = not table[column].null_count()
        require(filled, f"column {column!r} has an empty cell", path, "correct or remove that row")


def require_cells(column: pl.Series, good: pl.Series, wrong: str, path: Path, hint: str = COMPARE) -> None:
    """Check that every cell of ``column`` is ``good``; a null flag is not.

    The error names the first other cell as a line of the file, the header being line 1, and what is ``wrong``.
    """
    row = (~good.fill_null(False)).arg_true().first()
    if isinstance(row, int):
        raise DataError(f"column {column.name!r}, line {row + 2}: {column[row]!r} {wrong}", where=path, hint=hint)


def require_values(table: pl.DataFrame, column: str, allowed: Collection[str], path: Path) -> None:
    """Check that every cell of the text ``column`` is one of ``allowed``; an empty cell (null) is not."""
    good = table[column].is_in(list(allowed))
    require_cells(table[column], good, f"is not allowed; allowed: {', '.join(allowed)}", path)


def chexpert_labels(table: pl.DataFrame, columns: Collection[str], path: Path) -> pl.DataFrame:
    """Return ``table`` with its label ``columns`` in one spelling: 1.0, 0.0, -1.0 (uncertain) or empty."""
    table = table.with_columns(pl.col(*columns).fill_null("").str.replace(r"^(-?[01])$", "${1}.0"))
    for column in columns:
        require_values(table, column, (PRESENT, ABSENT, UNCERTAIN, NOT_MENTIONED), path)
    return table


def require_sources(needed: pl.Series, mapped: pl.Series, path: Path) -> None:
    """Check that the source map at ``path`` has a row for each of ``needed``, else patients would be guesses."""
    unknown = needed.filter(~needed.is_in(mapped.to_list()))
    if not unknown.is_empty():
        hint = "add the row, or remove the map to count each image as a patient"
        raise DataError(f"no row for {unknown[0]!r}, so its patient is unknown", where=path, hint=hint)


def nih_patient(number: pl.Expr) -> pl.Expr:
    """Return the id of an NIH Clinical Center patient from its number: the same in every dataset made of NIH images."""
    return pl.lit("nih:") + number.str.strip_chars().str.zfill(8)


def _parsed(column: pl.Series, parsed: pl.Series, what: str, path: Path) -> pl.Series:
    strange = column.filter(parsed.is_null() & column.is_not_null())
    if not strange.is_empty():
        raise DataError(f"column {column.name!r}: {strange[0]!r} is not {what}", where=path, hint=COMPARE)
    return parsed


def _first_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error).split("\n")[0]).strip() or type(error).__name__
