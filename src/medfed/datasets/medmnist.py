"""MedMNIST v2 (Yang 2023): 28 × 28 images, one ``.npz`` per set; a further grey two-class set is a short class."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import UInt8

from medfed.core.errors import DataError
from medfed.datasets.base import Dataset, Raw, Record, require
from medfed.datasets.tables import FileState

SPLITS = {"train": "train", "val": "development", "test": "test"}
"""The file's name of a split → ours."""
SIDE = 28
HINT = "download it again; expected train, val and test _images (uint8, n × 28 × 28) and _labels (uint8, n × 1)"


class MedMnist(Dataset):
    """One ``.npz``, the marker, with the arrays ``train_images``, ``train_labels``, ``val_…`` and ``test_…``.

    The one target is the finding that label 1 stands for.
    """

    modalities = ("image",)

    def index(self, root: Path) -> pl.DataFrame:
        """One row per image in the file's order; example ``test-17`` is row 17 of ``test_images``."""
        arrays = _arrays(FileState.of(root / self.marker))
        labels = {split: arrays[f"{split}_labels"].ravel() for split in SPLITS}
        example = pl.Series([f"{split}-{row}" for split, column in labels.items() for row in range(len(column))])
        return pl.DataFrame(
            {
                "example": example,
                "patient": f"{self.name}:" + example,
                "site": pl.Series([None] * len(example), dtype=pl.Utf8),
                "split": [SPLITS[split] for split, column in labels.items() for _ in column],
                "files": [[self.marker]] * len(example),
                self.targets[0]: np.concatenate(list(labels.values())).astype(np.int8),
            }
        )

    def load(self, root: Path, record: Record) -> Raw:
        """Return the image in [0, 1]."""
        split, row = str(record["example"]).rsplit("-", 1)
        image = _arrays(FileState.of(root / self.marker))[f"{split}_images"][int(row)]
        return {"image": image.astype(np.float32) / np.float32(255)}


@lru_cache(maxsize=1)
def _arrays(state: FileState) -> Mapping[str, UInt8[np.ndarray, "..."]]:
    """Read and check all arrays; they are kept while the file is the same, for the other examples of the set."""
    path = state.path
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"not a whole .npz file ({error})", where=path, hint=HINT) from error
    for split in SPLITS:
        for key in (f"{split}_images", f"{split}_labels"):
            require(key in arrays, f"array {key!r} is missing; found {', '.join(arrays)}", path, HINT)
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        grey = images.dtype == np.uint8 and images.shape == (len(images), SIDE, SIDE)
        require(grey, f"{split}_images is {images.dtype} {images.shape}, not grey 28 × 28", path, HINT)
        one_each = labels.shape == (len(images), 1)
        require(one_each, f"{split}_labels has shape {labels.shape} for {len(images)} images", path, HINT)
        for row in np.flatnonzero((labels != 0) & (labels != 1)):
            what = f"{split}_labels, row {row}: {labels[row, 0]} is not allowed; allowed: 0, 1"
            raise DataError(what, where=path, hint=HINT)
    return arrays


class PneumoniaMnist(MedMnist):
    """Chest radiographs of children."""

    name = "pneumoniamnist"
    targets = ("pneumonia",)
    marker = "pneumoniamnist.npz"
    simulator = "medfed.twins.chest_datasets:write_pneumoniamnist_twin"


DATASETS: tuple[Dataset, ...] = (PneumoniaMnist(),)
