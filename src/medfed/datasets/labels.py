"""Official label tables: a value nobody expects is an error, never a negative; one person has one id everywhere."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import polars as pl

from medfed.errors import DataError

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


def require_values(table: pl.DataFrame, column: str, allowed: Collection[str], path: Path) -> None:
    """Check that every cell of the text ``column`` is one of ``allowed``; an empty cell (null) is not.

    Raises:
        DataError: naming the first offending row as a line of the file, the header being line 1.
    """
    strange = (table[column].is_null() | ~table[column].is_in(list(allowed))).fill_null(True)
    if strange.any():
        row = int(strange.arg_max() or 0)
        raise DataError(
            f"column {column!r}, line {row + 2}: {table[column][row]!r} is not allowed; allowed: {', '.join(allowed)}",
            where=path,
            hint="compare the file with the version on the dataset's card (medfed data list)",
        )


def require_sources(needed: pl.Series, mapped: pl.Series, path: Path) -> None:
    """Check that the source map at ``path`` has a row for each of ``needed``, else patients would be guesses.

    Raises:
        DataError: naming the first one without a row.
    """
    unknown = needed.filter(~needed.is_in(mapped.to_list()))
    if not unknown.is_empty():
        raise DataError(
            f"no row for {unknown[0]!r}, so its patient is unknown",
            where=path,
            hint="add the row, or remove the map to count each image as a patient",
        )


def nih_patient(number: pl.Expr) -> pl.Expr:
    """Return the id of an NIH Clinical Center patient from its number: the same in every dataset made of NIH images."""
    return pl.lit("nih:") + number.str.strip_chars().str.zfill(8)


def flag(condition: pl.Expr) -> pl.Expr:
    """Return a target column: 1 where ``condition`` holds, else 0."""
    return condition.fill_null(False).cast(pl.Int8)
