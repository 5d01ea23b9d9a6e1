"""The image datasets, and small twins of them, for tests."""

from __future__ import annotations

from pathlib import Path

from medfed.datasets.base import Dataset, TwinSpec, write_twin
from medfed.datasets.chestxray14 import ChestXray14
from medfed.datasets.chexpert import CheXpert
from medfed.datasets.covid_radiography import CovidRadiography
from medfed.datasets.medmnist import MedMnist
from medfed.datasets.rsna_pneumonia import RsnaPneumonia

PNEUMONIA_MNIST = MedMnist("pneumoniamnist", "pneumonia", "PneumoniaMNIST", "Kermany et al., Cell 172:1122 (2018)")
IMAGE_DATASETS: tuple[Dataset, ...] = (CovidRadiography(), RsnaPneumonia(), CheXpert(), ChestXray14(), PNEUMONIA_MNIST)


def twin(dataset: Dataset, root: Path, num_patients: int = 12, **settings: float) -> Path:
    """Write a twin of ``dataset`` with 32-pixel images and return its root."""
    write_twin(dataset, root, TwinSpec(num_patients=num_patients, **{"image_size": 32, **settings}))
    return root
