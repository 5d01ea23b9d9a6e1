"""The dataset registry: one line per file; each has a tuple ``DATASETS``."""

from __future__ import annotations

from medfed.core.registry import collect
from medfed.datasets.base import Dataset

DATASETS: dict[str, Dataset] = collect(
    (
        "medfed.datasets.covid_radiography",
        "medfed.datasets.rsna_pneumonia",
        "medfed.datasets.chexpert",
        "medfed.datasets.chestxray14",
        "medfed.datasets.medmnist",
        "medfed.datasets.ptbxl",
        "medfed.datasets.yaib",
        "medfed.datasets.vqa_rad",
        "medfed.datasets.slake",
        "medfed.datasets.ecg_qa",
        "medfed.datasets.symile_mimic",
        "medfed.datasets.brats",
        "medfed.datasets.mimic_cxr",
        "medfed.datasets.covid19_repository",
        "medfed.datasets.mimic_iv",
        "medfed.datasets.eicu",
        "medfed.datasets.path_vqa",
        "medfed.datasets.ehrxqa",
    ),
    "DATASETS",
)
