"""Read the CSV tables of PhysioNet's databases, gzipped as they are published or unpacked, column by column.

Only the asked columns and rows are kept, so that a table of a hundred million laboratory values fits in memory.
"""

from __future__ import annotations

from pathlib import Path

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
