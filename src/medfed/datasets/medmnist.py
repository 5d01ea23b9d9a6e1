"""MedMNIST v2 (Yang 2023): 28 × 28 sets in one ``.npz`` file each; any grey two-class set is one more line in the registry."""

from __future__ import annotations

import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Shaped, UInt8

from medfed.datasets.base import Card, Dataset, Record, TwinSpec
from medfed.datasets.images import eight_bits
from medfed.datasets.twins.chest_cohorts import PAEDIATRIC, Film, draw_films
from medfed.errors import DataError

SPLITS = {"train": "train", "val": "development", "test": "test"}
"""The file's name of a split → ours."""
KEYS = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))
SIDE = 28


class MedMnist(Dataset):
    """One ``{flag}.npz`` with ``train_images``, ``train_labels``, ``val_…`` and ``test_…``.

    Args:
        flag: MedMNIST's name of the set, e.g. ``pneumoniamnist``.
        target: name of label 1.
        title: for the card.
        source: citation of the set's own source.
    """

    modalities = ("image",)

    def __init__(self, flag: str, target: str, title: str, source: str) -> None:
        # one class serves many sets, so what is a class attribute elsewhere belongs to the instance here
        self.name, self.marker, self.targets = flag, f"{flag}.npz", (target,)  # type: ignore[misc]
        self.card = Card(  # type: ignore[misc]
            title=title,
            version="MedMNIST v2, 28 × 28",
            licence="CC BY 4.0",
            access="https://zenodo.org/records/10519652",
            citation=f"Yang et al., Scientific Data 10:41 (2023); {source}",
            note="MedMNIST publishes no patient ids: each image counts as a patient. The official split is kept.",
        )

    def index(self, root: Path) -> pl.DataFrame:
        """One row per image, in the file's order; example ``test-17`` is row 17 of ``test_images``."""
        arrays = _read(root / self.marker)
        tables = [_split_table(split, arrays[f"{split}_labels"].ravel()) for split in SPLITS]
        return pl.concat(tables).select(
            "example",
            patient=pl.lit(f"{self.name}:") + pl.col("example"),
            site=pl.lit(None, pl.Utf8),
            split="split",
            files=pl.concat_list(pl.lit(self.marker)),
            label=pl.col("label").cast(pl.Int8),
        ).rename({"label": self.targets[0]})

    def load(self, root: Path, record: Record) -> dict[str, np.ndarray]:
        """Return the image in [0, 1]."""
        split, number = str(record["example"]).rsplit("-", 1)
        image = _read(root / self.marker)[f"{split}_images"][int(number)]
        return {"image": image.astype(np.float32) / np.float32(255)}
'''
'''
