"""Read the CSV tables of PhysioNet's databases, gzipped as they are published or unpacked, column by column.

Only the asked columns and rows are kept, so that a table of a hundred million laboratory values fits in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import polars as pl

from medfed.datasets.base import require_columns
from medfed.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
AGAIN = "download the file again and compare its checksum with SHA256SUMS.txt"


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
                raise DataError("not a gzip file", where=path, hint=AGAIN)
    try:
        table = pl.scan_csv(path, infer_schema=False)
        require_columns(table.head(0).collect(), columns, path)
        wanted = table.select(columns)
        return (wanted if rows is None else wanted.filter(rows)).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:  # its text may quote a patient's line
        raise DataError(
            f"not a UTF-8 CSV table ({type(error).__name__})", where=path, hint="download the file again"
        ) from error
    except OSError as error:
        raise DataError(f"the file cannot be read ({error})", where=path, hint=AGAIN) from error


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
