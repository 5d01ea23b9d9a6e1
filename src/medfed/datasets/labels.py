"""Checks on the label columns of official tables: a value nobody expects is an error, never a negative."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import polars as pl

from medfed.errors import DataError


def require_values(table: pl.DataFrame, column: str, allowed: Collection[str], path: Path) -> None:
    """Raise :class:`DataError` naming the first row of the text ``column`` whose value is not in ``allowed``.

    An empty cell is null, and an error too; fill nulls first where empty cells are allowed. Rows are counted as lines of
    the file, the header being line 1.
    """
    strange = table[column].is_null() | ~table[column].is_in(list(allowed))
    if strange.any():
        row = int(strange.arg_max() or 0)
        raise DataError(
            f"column {column!r}, line {row + 2}: {table[column][row]!r} is not allowed; allowed: {', '.join(sorted(allowed))}",
            where=path,
            hint="compare the file with the version on the dataset's card (medfed data list)",
        )


def nih_patient(number: pl.Expr) -> pl.Expr:
    """Return the patient id of an NIH Clinical Center patient number, the same in every dataset made of NIH images."""
    return pl.lit("nih:") + number.str.strip_chars().str.zfill(8)
