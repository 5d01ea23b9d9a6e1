"""CheXpert (Irvin 2019): FedKIM's unseen tasks ECD, PED and AD, on its validation table read by radiologists.

A finding is present if its column is 1. As in the paper, 0, −1 (uncertain) and an empty cell mean absent.
Deviation: FedKIM's released code reads the Atelectasis column for pleural effusion; here each finding has its own.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from medfed.datasets.base import Dataset, Raw, Record
from medfed.datasets.images import load_image
from medfed.datasets.tables import CHEXPERT_LABELS, PRESENT, chexpert_labels, flag, read_csv, require_cells

TABLES = {"valid.csv": "test", "train.csv": "train"}
"""Table → official split: the tasks are tested on the table that radiologists read. ``train.csv`` may be absent."""
COLUMNS = {key: CHEXPERT_LABELS[key] for key in ("enlarged_cardiomediastinum", "pleural_effusion", "atelectasis")}


class CheXpert(Dataset):
    """JPEG files under ``valid/`` and ``train/`` and a table for each; the small release or the full one."""

    name = "chexpert"
    modalities = ("image",)
    targets = tuple(COLUMNS)
    marker = "valid/patient*"
    simulator = "medfed.twins.chest_datasets:write_chexpert_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """One row per image, frontal and lateral. The first folder of a ``Path`` is ``root`` by its published name."""
        there = {root / name: split for name, split in TABLES.items() if split == "test" or (root / name).exists()}
        file = pl.col("Path").str.split("/").list.slice(1).list.join("/")
        return pl.concat(_table(path, split) for path, split in there.items()).select(
            example=file.str.replace(r"\.jpg$", ""),
            patient=pl.lit("chexpert:") + pl.col("patient"),
            site=pl.lit(self.card.sites[0]),
            split="split",
            files=pl.concat_list(file),
            **{target: flag(pl.col(column) == PRESENT) for target, column in COLUMNS.items()},
        )

    def load(self, root: Path, record: Record) -> Raw:
        """Decode the image to [0, 1]."""
        table = next(name for name, split in TABLES.items() if split == record["split"])
        return {"image": load_image(root, record, table)}


def _table(path: Path, split: str) -> pl.DataFrame:
    """Read one table as Path, patient, split and the finding columns as text: 1.0, 0.0, −1.0 or empty."""
    table = chexpert_labels(read_csv(path, ("Path", *COLUMNS.values())), COLUMNS.values(), path)
    patient = table["Path"].str.extract(r"/(patient\d+)/")
    expected = "expected CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg"
    require_cells(table["Path"], patient.is_not_null(), "names no patient", path, expected)
    return table.select("Path", *COLUMNS.values(), patient=patient, split=pl.lit(split))


DATASETS: tuple[Dataset, ...] = (CheXpert(),)
