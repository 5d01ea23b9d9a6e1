"""Labels and patients that several datasets share: CheXpert's findings, and the ids of NIH patients."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import polars as pl

from medfed.core.errors import DataError
from medfed.datasets.tables import require_values

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
