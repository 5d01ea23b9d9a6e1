"""SLAKE, bilingual questions about radiology images (FedKIM Table 2: medical visual question answering).

Native layout: ``Slake1.0/{train,validate,test}.json`` beside ``Slake1.0/imgs/<img_name>``.
Source: Liu et al. 2021, SLAKE: a semantically-labeled knowledge-enhanced dataset for medical VQA.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from medfed.core.errors import DataError
from medfed.datasets.base import Card, Dataset, Record
from medfed.datasets.formats import inside, is_closed, origin, read_rows, text
from medfed.datasets.images import load_image

FOLDER = "Slake1.0"
SPLITS = {"train": "train", "validate": "development", "test": "test"}


class Slake(Dataset):
    """SLAKE in English."""

    name: ClassVar[str] = "slake"
    language: ClassVar[str] = "en"
    card: ClassVar[Card] = Card(
        title="SLAKE",
        version="1.0",
        licence="CC BY 4.0",
        access="https://www.med-vqa.com/slake/",
        citation="Liu et al., ISBI 2021, arXiv:2102.09542",
        note="A patient is an image. slake holds the English questions, slake-zh the Chinese.",
    )
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    targets: ClassVar[tuple[str, ...]] = ("answer",)
    marker: ClassVar[str] = f"{FOLDER}/*.json"
    simulator: ClassVar[str] = "medfed.twins.vqa:write_slake_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """One row per question in the dataset's language; official files that the folder lacks are left out.

        Raises:
            DataError: no official file is there, or one is malformed; the message names file, record and field.
        """
        paths = {name: root / FOLDER / f"{name}.json" for name in SPLITS}
        found = {name: path for name, path in paths.items() if path.is_file()} or paths
        rows = [row for name, path in found.items() for row in self._rows(path, name)]
        if not rows:
            raise DataError(
                f"no question has 'q_lang' {self.language!r}",
                where=root / FOLDER,
                hint="download the complete dataset",
            )
        return pl.DataFrame(rows).with_columns(site=pl.lit(None, pl.Utf8))

    def load(self, root: Path, record: Record) -> dict[str, np.ndarray]:
        """Decode the image to [0, 1]."""
        return {"image": load_image(root, record, origin(record, FOLDER, "img_name"))}

    def _rows(self, path: Path, name: str) -> list[dict[str, object]]:
        rows = []
        for number, row in enumerate(read_rows(path)):
            if text(row, "q_lang", path, number) != self.language:
                continue
            image = inside(text(row, "img_name", path, number), "img_name", path, number)
            rows.append(
                {
                    "example": f"slake:{name}:{number}",
                    "patient": f"slake:{Path(image).parts[0]}",
                    "split": SPLITS[name],
                    "files": [f"{FOLDER}/imgs/{image}"],
                    "question": text(row, "question", path, number),
                    "answer": text(row, "answer", path, number),
                    "closed": is_closed(row, path, number),
                    "language": self.language,
                }
            )
        return rows


class SlakeChinese(Slake):
    """SLAKE in Chinese: the same images, so the same patients."""

    name: ClassVar[str] = "slake-zh"
    language: ClassVar[str] = "zh"


DATASETS: tuple[Dataset, ...] = (Slake(), SlakeChinese())
