"""VQA-RAD, clinicians' questions on radiology images (FedKIM Table 2: medical visual question answering).

Native layout: ``data_RAD/{trainset,testset}.json`` and ``data_RAD/images/*.jpg``.
Source: Lau et al. 2018, A dataset of clinically generated visual questions and answers about radiology images.

Deviation: some images have questions in both files of the release. Such an image is wholly in the test split here.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from medfed.datasets.base import Dataset, Raw, Record
from medfed.datasets.questions import ImageQuestions, read_entries, text_bytes

FOLDER = "data_RAD"
SPLITS = {"trainset": "train", "testset": "test"}


class VqaRad(ImageQuestions):
    """VQA-RAD; a patient is an image, of which the release has one per case."""

    name = "vqa-rad"
    folder, images, image_field = FOLDER, "images", "image_name"
    marker = f"{FOLDER}/trainset.json"
    simulator = "medfed.twins.vqa:write_vqa_rad_twin"

    def patient(self, image: str) -> str:
        """Return the file's name without its ending."""
        return Path(image).stem

    def index(self, root: Path) -> pl.DataFrame:
        """One row per question."""
        files = {root / FOLDER / f"{name}.json": split for name, split in SPLITS.items()}
        rows = [self.row(entry, "vqa-rad", split) for path, split in files.items() for entry in read_entries(path)]
        held_out = pl.col("split").eq("test").any().over("patient")
        split = pl.when(held_out).then(pl.lit("test")).otherwise("split")
        return pl.DataFrame(rows).with_columns(split=split, site=pl.lit(None, pl.Utf8))


class VqaRadClosed(VqaRad):
    """VQA-RAD's questions that are answered by yes or no, with the question as a second input.

    The same files and patients; a dataset of its own, because the LLM's tasks read the question from the index.
    """

    name = "vqa-rad-closed"
    modalities = ("image", "question")
    targets = ("yes",)

    def index(self, root: Path) -> pl.DataFrame:
        """One row per yes/no question."""
        answers = {"yes": 1, "no": 0}
        yes = pl.col("answer").str.to_lowercase().replace_strict(answers, default=None, return_dtype=pl.Int8)
        return super().index(root).with_columns(yes=yes).filter(pl.col("closed") & pl.col("yes").is_not_null())

    def load(self, root: Path, record: Record) -> Raw:
        """Decode the image to [0, 1], and give the question as UTF-8 bytes."""
        return {**super().load(root, record), "question": text_bytes(str(record["question"]))}


DATASETS: tuple[Dataset, ...] = (VqaRad(), VqaRadClosed())
