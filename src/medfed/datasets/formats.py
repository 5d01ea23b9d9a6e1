"""Read what datasets share: ``.npy`` arrays, PhysioNet's CSV tables, and lists of questions in JSON.

Arrays may be larger than memory: every one is memory-mapped and never unpickled. A file that is shorter than its header
says, holds Python objects or has another shape is refused when it is opened, not at the row that happens to be missing.
Of tables only the wanted columns and rows are kept, so a hundred million laboratory values fit in memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Shaped

from medfed.core.errors import DataError
from medfed.datasets.base import Record, require_columns

ARRAY_AGAIN = "download the file again and compare its size with the dataset's page"


def open_npy(path: Path, shape: tuple[int | None, ...], kinds: str) -> Shaped[np.ndarray, "..."]:
    """Map an array into memory, read-only.

    Args:
        path: the ``.npy`` file.
        shape: wanted shape; None where any size above 0 is right.
        kinds: NumPy kinds that are right, e.g. ``"f"`` for floats or ``"iu"`` for whole numbers.

    Raises:
        DataError: the file is missing, truncated, pickled, or of another shape or type.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError("the file is missing", where=path, hint="download the complete dataset") from error
    array = _mapped(path, stat.st_size, stat.st_mtime_ns)
    if array.dtype.kind not in kinds:
        raise DataError(f"holds {array.dtype} values, which is not what belongs here", where=path, hint=ARRAY_AGAIN)
    fits = len(array.shape) == len(shape) and all(
        size == wanted if wanted is not None else size > 0 for size, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted_text = " × ".join("any" if size is None else str(size) for size in shape)
        raise DataError(f"has shape {array.shape}; {wanted_text} is needed", where=path, hint=ARRAY_AGAIN)
    return array


@lru_cache(maxsize=32)
def _mapped(path: Path, size_bytes: int, modified_ns: int) -> Shaped[np.ndarray, "..."]:
    """Map the file; kept while it stays the same, as every row of it is asked for in turn."""
    try:
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = "it holds Python objects, which are never unpickled" if "object" in str(error).lower() else str(error)
        raise DataError(f"not a whole .npy array ({reason})", where=path, hint=ARRAY_AGAIN) from error
    if not isinstance(mapped, np.ndarray):
        mapped.close()
        raise DataError("a .npz archive, not a .npy array", where=path, hint=ARRAY_AGAIN)
    return mapped


GZIP_MAGIC = b"\x1f\x8b"
TABLE_AGAIN = "download the file again and compare its checksum with SHA256SUMS.txt"


def find_table(root: Path, name: str) -> Path:
    """Return ``root/name``, gzipped or not; ``name`` ends in ``.csv``.

    Raises:
        DataError: neither is there.
    """
    for path in (root / f"{name}.gz", root / name):
        if path.is_file():
            return path
    raise DataError(
        "the file is missing, gzipped (.gz) or not",
        where=root / name,
        hint="download the complete dataset, or check --data-root",
    )


def read_table(root: Path, name: str, columns: tuple[str, ...], rows: pl.Expr | None = None) -> pl.DataFrame:
    """Read ``columns`` as text; empty cells are null.

    Args:
        root: folder of the table.
        name: relative name, ending in ``.csv``; ``name.gz`` is taken first.
        columns: columns to keep.
        rows: condition on them; by default every row.

    Raises:
        DataError: the table is absent, not gzip or cut short, not UTF-8, not CSV, or lacks a column.
    """
    path = find_table(root, name)
    if path.suffix == ".gz":
        with path.open("rb") as file:
            if file.read(2) != GZIP_MAGIC:
                raise DataError("not a gzip file", where=path, hint=TABLE_AGAIN)
    try:
        table = pl.scan_csv(path, infer_schema=False, null_values=[""])
        require_columns(table.head(0).collect(), columns, path)
        wanted = table.select(columns)
        return (wanted if rows is None else wanted.filter(rows)).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:  # its text may quote a patient's line
        raise DataError(
            f"not a UTF-8 CSV table ({type(error).__name__})", where=path, hint="download the file again"
        ) from error
    except OSError as error:
        raise DataError(f"the file cannot be read ({error})", where=path, hint=TABLE_AGAIN) from error


def numbers(column: pl.Series, path: Path) -> pl.Series:
    """Return a text column as Float64; empty cells are null.

    Raises:
        DataError: a cell is not a number.
    """
    parsed = column.str.strip_chars().cast(pl.Float64, strict=False)
    return _parsed(column, parsed.set(parsed.is_nan().fill_null(False), None), "a number", path)


def times(column: pl.Series, path: Path) -> pl.Series:
    """Return a text column such as ``2180-07-23 14:00:00`` as Datetime; empty cells are null.

    Raises:
        DataError: a cell is not a time.
    """
    return _parsed(column, column.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False), "a time", path)


def require_filled(table: pl.DataFrame, columns: tuple[str, ...], path: Path) -> None:
    """Raise :class:`DataError` naming the first of ``columns`` with an empty cell."""
    for column in columns:
        if table[column].null_count():
            raise DataError(f"column {column!r} has an empty cell", where=path, hint="correct or remove that row")


class FileState(NamedTuple):
    """A file, and what tells that it was rewritten: the key under which its content may be kept in memory."""

    path: Path
    mtime_ns: int
    size: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Return the state of ``path`` now."""
        stat = path.stat()
        return cls(path, stat.st_mtime_ns, stat.st_size)


def _parsed(column: pl.Series, parsed: pl.Series, what: str, path: Path) -> pl.Series:
    strange = column.filter(parsed.is_null() & column.is_not_null())
    if not strange.is_empty():
        raise DataError(
            f"column {column.name!r}: {strange[0]!r} is not {what}",
            where=path,
            hint="compare the table with the version on the dataset's card (medfed data list)",
        )
    return parsed


Row = Mapping[str, object]
CLOSED = {"OPEN": False, "CLOSED": True}


def read_rows(path: Path) -> list[Row]:
    """Read a JSON list of objects, or a ``.jsonl`` file with one object a line.

    Raises:
        DataError: the file is missing, not UTF-8 JSON, or not a list of objects.
    """
    if not path.is_file():
        raise DataError("the file is missing", where=path, hint="download the complete dataset, or check --data-root")
    try:
        content = path.read_text(encoding="utf-8-sig")
        lines = [line for line in content.split("\n") if line.strip()] if path.suffix == ".jsonl" else None
        rows = json.loads(content) if lines is None else [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise DataError(f"not UTF-8 JSON ({error})", where=path, hint="download the file again") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError("not a list of JSON objects", where=path, hint="download the file again")
    return rows


def text(row: Row, field: str, path: Path, number: int) -> str:
    """Return a field as text without surrounding space; a number becomes its digits.

    Raises:
        DataError: the field is missing, empty, or neither text nor a number; the message names file, row and field.
    """
    value = row.get(field)
    stripped = str(value).strip() if isinstance(value, str | int | float) else ""
    if not stripped:
        what = "is missing" if field not in row else f"is {_described(value)}"
        raise DataError(f"record {number}: field {field!r} {what}", where=path, hint="correct or remove the record")
    return stripped


def _described(value: object) -> str:
    """Say what a bad value is, not what it says: it may be a patient's text."""
    return "empty" if isinstance(value, str) else f"of type {type(value).__name__}, neither text nor a number"


def yes_or_no(answer: str) -> int | None:
    """Return 1 for yes, 0 for no, letter case aside, and None for another answer."""
    return {"yes": 1, "no": 0}.get(answer.lower())


def is_closed(row: Row, path: Path, number: int) -> bool:
    """Return whether ``answer_type`` is CLOSED.

    Raises:
        DataError: it is neither OPEN nor CLOSED.
    """
    kind = text(row, "answer_type", path, number)
    if kind.upper() not in CLOSED:
        raise DataError(
            f"record {number}: field 'answer_type' is {kind!r}; allowed: OPEN, CLOSED",
            where=path,
            hint="correct or remove the record",
        )
    return CLOSED[kind.upper()]


def inside(name: str, field: str, path: Path, number: int) -> str:
    """Return a file name that stays inside the dataset.

    Raises:
        DataError: it is absolute or climbs out.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(
            f"record {number}: field {field!r} is {name!r}, not a path inside the dataset",
            where=path,
            hint="correct or remove the record",
        )
    return name


def origin(record: Record, folder: str, field: str) -> str:
    """Say where an image is named: ``record``'s example ends in the table's stem and the number of its row."""
    _, stem, number = record["example"].rsplit(":", 2)
    return f"{folder}/{stem}.json (record {number}, field {field!r})"
