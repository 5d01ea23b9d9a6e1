"""VQA-RAD, questions that clinicians asked of radiology images (FedKIM Table 2: medical visual question answering).

Native layout: ``data_RAD/{trainset,testset}.json`` beside ``data_RAD/images/*.jpg``.
Source: Lau et al. 2018, A dataset of clinically generated visual questions and answers about radiology images.

Deviation: the release asks about some images in both files. Such an image is wholly in the test split here.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from medfed.datasets.base import Card, Dataset, Record
from medfed.datasets.formats import inside, is_closed, origin, read_rows, text
from medfed.datasets.images import load_image

FOLDER = "data_RAD"
SPLITS = {"trainset": "train", "testset": "test"}


class VqaRad(Dataset):
    """VQA-RAD; a patient is an image, of which the release has one per case."""

    name: ClassVar[str] = "vqa-rad"
    card: ClassVar[Card] = Card(
        title="VQA-RAD",
        version="1.0",
        licence="CC0 1.0",
        access="https://osf.io/89kps/",
        citation="Lau et al., Scientific Data 5:180251 (2018)",
        note="Images asked about in both official files count as test.",
    )
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    targets: ClassVar[tuple[str, ...]] = ("answer",)
    marker: ClassVar[str] = f"{FOLDER}/trainset.json"
    simulator: ClassVar[str] = "medfed.twins.vqa:write_vqa_rad_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """One row per question.

        Raises:
            DataError: a file is missing or malformed; the message names file, record and field.
        """
        rows = [row for name, split in SPLITS.items() for row in _rows(root / FOLDER / f"{name}.json", split)]
        held_out = pl.col("split").eq("test").any().over("patient")
        return pl.DataFrame(rows).with_columns(
            split=pl.when(held_out).then(pl.lit("test")).otherwise("split"), site=pl.lit(None, pl.Utf8)
        )

    def load(self, root: Path, record: Record) -> dict[str, np.ndarray]:
        """Decode the image to [0, 1]."""
        return {"image": load_image(root, record, origin(record, FOLDER, "image_name"))}


def _rows(path: Path, split: str) -> list[dict[str, object]]:
    rows = []
    for number, row in enumerate(read_rows(path)):
        image = inside(text(row, "image_name", path, number), "image_name", path, number)
        rows.append(
            {
                "example": f"vqa-rad:{path.stem}:{number}",
                "patient": f"vqa-rad:{Path(image).stem}",
                "split": split,
                "files": [f"{FOLDER}/images/{image}"],
                "question": text(row, "question", path, number),
                "answer": text(row, "answer", path, number),
                "closed": is_closed(row, path, number),
            }
        )
    return rows


class VqaRadClosed(VqaRad):
    """VQA-RAD's questions that are answered by yes or no, with the question as an input beside the image.

    The same files and patients; a dataset of its own, because the LLM's tasks read the question from the index.
    """

    name: ClassVar[str] = "vqa-rad-closed"
    modalities: ClassVar[tuple[str, ...]] = ("image", "question")
    targets: ClassVar[tuple[str, ...]] = ("yes",)

    def index(self, root: Path) -> pl.DataFrame:
        """One row per yes/no question; raises as :meth:`VqaRad.index` does."""
        answers = {"yes": 1, "no": 0}
        yes = pl.col("answer").str.to_lowercase().replace_strict(answers, default=None, return_dtype=pl.Int8)
        return super().index(root).with_columns(yes=yes).filter(pl.col("closed") & pl.col("yes").is_not_null())

    def load(self, root: Path, record: Record) -> dict[str, np.ndarray]:
        """Decode the image to [0, 1], and give the question as UTF-8 bytes."""
        question = np.frombuffer(str(record["question"]).encode(), np.uint8)
        return {**super().load(root, record), "question": question}


DATASETS: tuple[Dataset, ...] = (VqaRad(), VqaRadClosed())
