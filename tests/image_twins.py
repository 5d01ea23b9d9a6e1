"""The image datasets, and small twins of them, for tests."""

from __future__ import annotations

from pathlib import Path

from medfed.core.catalog import DATASETS
from medfed.datasets.base import Dataset, write_twin
from medfed.study.data import TwinSpec

IMAGE_DATASETS: tuple[Dataset, ...] = tuple(
    DATASETS[name]
    for name in (
        "covid-radiography",
        "rsna-pneumonia",
        "chexpert",
        "chestxray14",
        "pneumoniamnist",
        "vqa-rad",
        "slake",
        "slake-zh",
    )
)
PNEUMONIA_MNIST = DATASETS["pneumoniamnist"]


def twin(dataset: Dataset, root: Path, num_patients: int = 12, **settings: float) -> Path:
    """Write a twin of ``dataset`` with 32-pixel images and return its root."""
    write_twin(dataset, root, TwinSpec(num_patients=num_patients, **{"image_size": 32, **settings}))
    return root
