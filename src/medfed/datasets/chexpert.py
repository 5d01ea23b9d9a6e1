"""CheXpert (Irvin 2019): FedKIM's unseen tasks ECD, PED and AD, on its validation table read by radiologists.

A finding is present where its column is 1; 0, −1 (uncertain) and an empty cell (not mentioned) mean absent, as in the
paper.
Deviation: FedKIM's released code reads the Atelectasis column for pleural effusion; here each finding has its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from medfed.core.errors import DataError
from medfed.datasets.base import Card, Dataset, Record, read_csv
from medfed.datasets.images import load_image
from medfed.datasets.labels import flag, require_values

TABLES = {"valid.csv": "test", "train.csv": "train"}
"""Table → official split: the tasks are tested on the table that radiologists read. ``train.csv`` may be absent."""
TARGETS = {
    "enlarged_cardiomediastinum": "Enlarged Cardiomediastinum",
    "pleural_effusion": "Pleural Effusion",
    "atelectasis": "Atelectasis",
}

VALUES = ("1.0", "0.0", "-1.0", "")


class CheXpert(Dataset):
    """JPEG files under ``valid/`` and ``train/`` and a table for each; the small release or the full one."""

    name: ClassVar[str] = "chexpert"
    card: ClassVar[Card] = Card(
        title="CheXpert",
        version="1.0 (small): 234 validation and 223,414 training images",
        licence="Stanford University Dataset Research Use Agreement",
        access="https://stanfordmlgroup.github.io/competitions/chexpert/",
        citation="Irvin et al., AAAI 33:590 (2019)",
        sites=("Stanford Hospital",),
        note="valid.csv was labelled by three radiologists and is the test split, train.csv by rules from reports.",
    )
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    targets: ClassVar[tuple[str, ...]] = tuple(TARGETS)
    marker: ClassVar[str] = "valid/patient*"
    simulator: ClassVar[str] = "medfed.twins.chest_datasets:write_chexpert_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """One row per image, frontal and lateral. The first folder of a ``Path`` is ``root`` by its published name."""
        tables = [
            _table(root / name, split)
            for name, split in TABLES.items()
            if name == "valid.csv" or (root / name).exists()
        ]
        file = pl.col("Path").str.split("/").list.slice(1).list.join("/")
        return pl.concat(tables).select(
            example=file.str.replace(r"\.jpg$", ""),
            patient=pl.lit("chexpert:") + pl.col("patient"),
            site=pl.lit(self.card.sites[0]),
            split="split",
            files=pl.concat_list(file),
            **{target: flag(pl.col(column) == "1.0") for target, column in TARGETS.items()},
        )

    def load(self, root: Path, record: Record) -> dict[str, np.ndarray]:
        """Decode the image to [0, 1]."""
        table = next(name for name, split in TABLES.items() if split == record["split"])
        return {"image": load_image(root, record, table)}


def _table(path: Path, split: str) -> pl.DataFrame:
    """Read one table as Path, patient, split and the finding columns as text: 1.0, 0.0, −1.0 or empty."""
    table = read_csv(path, ("Path", *TARGETS.values()))
    table = table.with_columns(
        pl.col(column).fill_null("").str.replace(r"^(-?[01])$", "${1}.0") for column in TARGETS.values()
    )
    for column in TARGETS.values():
        require_values(table, column, VALUES, path)
    table = table.select(
        "Path", *TARGETS.values(), patient=pl.col("Path").str.extract(r"/(patient\d+)/"), split=pl.lit(split)
    )
    nameless = table["patient"].is_null()
    if nameless.any():
        row = int(nameless.arg_max() or 0)
        raise DataError(
            f"column 'Path', line {row + 2}: {table['Path'][row]!r} names no patient",
            where=path,
            hint="expected CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg",
        )
    return table


DATASETS: tuple[Dataset, ...] = (CheXpert(),)
