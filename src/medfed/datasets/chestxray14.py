"""ChestX-ray14 (Wang 2017): 14 findings mined from the reports of the NIH Clinical Center."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from medfed.datasets.base import Dataset, Raw, Record
from medfed.datasets.images import load_image
from medfed.datasets.tables import flag, nih_patient, read_csv, require_cells

TABLE = "Data_Entry_2017_v2020.csv"
TABLES = (TABLE, "Data_Entry_2017.csv")
LISTS = {"test_list.txt": "test", "train_val_list.txt": "train"}
NO_FINDING = "No Finding"
LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip


class ChestXray14(Dataset):
    """PNG files in ``images/`` or in ``images_001/images/`` …, a table, and the official lists if present."""

    name = "chestxray14"
    modalities = ("image",)
    targets = tuple(label.lower() for label in LABELS)
    marker = "Data_Entry_2017*.csv"
    simulator = "medfed.twins.chest_datasets:write_chestxray14_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """One row per row of the table, whether its image is there or not."""
        path = _table_path(root)
        table = read_csv(path, ("Image Index", "Finding Labels", "Patient ID"))
        allowed = [NO_FINDING, *LABELS]
        known = table["Finding Labels"].fill_null("").str.split("|").list.eval(pl.element().is_in(allowed)).list.all()
        require_cells(table["Finding Labels"], known, f"is not allowed; allowed: {', '.join(allowed)}", path)
        findings = pl.col("Finding Labels").str.split("|")
        folders = {file.name: file.relative_to(root).as_posix() for file in root.glob("images*/**/*.png")}
        lists = {root / file: split for file, split in LISTS.items() if (root / file).is_file()}
        splits = {name: split for file, split in lists.items() for name in file.read_text(encoding="utf-8").split()}
        names = table["Image Index"].to_list()
        return table.select(
            example=pl.col("Image Index").str.strip_suffix(".png"),
            patient=nih_patient(pl.col("Patient ID")),
            site=pl.lit(self.card.sites[0]),
            split=pl.Series([splits.get(name) for name in names], dtype=pl.Utf8),
            files=pl.concat_list(pl.Series([folders.get(name, f"images/{name}") for name in names], dtype=pl.Utf8)),
            **{label.lower(): flag(findings.list.contains(label)) for label in LABELS},
        )

    def load(self, root: Path, record: Record) -> Raw:
        """Decode the image to [0, 1]."""
        return {"image": load_image(root, record, _table_path(root).name)}


def _table_path(root: Path) -> Path:
    return next((root / name for name in TABLES if (root / name).is_file()), root / TABLE)


DATASETS: tuple[Dataset, ...] = (ChestXray14(),)
