"""SLAKE, bilingual questions about radiology images (FedKIM Table 2: medical visual question answering).

Native layout: ``Slake1.0/{train,validate,test}.json`` and ``Slake1.0/imgs/<img_name>``.
Source: Liu et al. 2021, SLAKE: a semantically-labeled knowledge-enhanced dataset for medical VQA.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import polars as pl

from medfed.datasets.base import COMPLETE, Dataset, require
from medfed.datasets.questions import ImageQuestions, read_entries

FOLDER = "Slake1.0"
SPLITS = {"train": "train", "validate": "development", "test": "test"}


class Slake(ImageQuestions):
    """SLAKE in English."""

    name = "slake"
    language: ClassVar[str] = "en"
    folder, images, image_field = FOLDER, "imgs", "img_name"
    marker = f"{FOLDER}/*.json"
    simulator = "medfed.twins.vqa:write_slake_twin"

    def patient(self, image: str) -> str:
        """Return the folder that holds the image."""
        return Path(image).parts[0]

    def index(self, root: Path) -> pl.DataFrame:
        """One row per question in the dataset's language; official files that the folder lacks are left out."""
        files = {root / FOLDER / f"{name}.json": split for name, split in SPLITS.items()}
        there = {path: split for path, split in files.items() if path.is_file()} or files
        entries = ((entry, split) for path, split in there.items() for entry in read_entries(path))
        wanted = ((entry, split) for entry, split in entries if entry.text("q_lang") == self.language)
        rows = [{**self.row(entry, "slake", split), "language": self.language} for entry, split in wanted]
        require(rows, f"no question has 'q_lang' {self.language!r}", root / FOLDER, COMPLETE)
        return pl.DataFrame(rows).with_columns(site=pl.lit(None, pl.Utf8))


class SlakeChinese(Slake):
    """SLAKE in Chinese: the same images, so the same patients."""

    name = "slake-zh"
    language: ClassVar[str] = "zh"


DATASETS: tuple[Dataset, ...] = (Slake(), SlakeChinese())
