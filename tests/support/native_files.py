"""Patients written by hand in the layout of their data sets: BraTS cases, and tables of PTB-XL and YAIB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import nibabel
import numpy as np
import polars as pl

from medfed.core.catalog import TASKS
from medfed.data.decode import decode
from medfed.datasets.base import write_twin
from medfed.datasets.brats import BraTS
from medfed.datasets.decoded import Decoded
from medfed.modalities.base import Modality
from medfed.modalities.timeseries import ICU
from medfed.modalities.volume import MaskModality, VolumeModality
from medfed.study.data import TwinSpec
from medfed.tasks.base import TaskSet

BRATS = TASKS["brats"]

DATASET = BraTS()
CASE_2018 = "HGG/Brats18_TCIA01_9001_1"
CASE_2024 = "BraTS-GLI-09001-100"
NAMES = {"t1": ("t1", "t1n"), "t1c": ("t1ce", "t1c"), "t2": ("t2", "t2w"), "flair": ("flair", "t2f")}


def native_file(root: Path, case: str, what: str) -> Path:
    """Where the layout has a sequence, or ``seg``, of a case."""
    name = Path(case).name
    gli = name.startswith("BraTS-GLI")
    ending = what if what == "seg" else NAMES[what][gli]
    return root / case / f"{name}{'-' if gli else '_'}{ending}.nii.gz"


def write_volume(path: Path, voxels: np.ndarray, spacing_mm: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])), path)


def write_case(root: Path, case: str = CASE_2018) -> Path:
    """A brain of 6 × 7 × 8 voxels in a field of 12 × 11 × 10, each sequence a ramp of its own, and a tumour in it."""
    for number, name in enumerate(NAMES, start=1):
        voxels = np.zeros((12, 11, 10), np.int16)
        voxels[2:8, 3:10, 1:9] = np.arange(6 * 7 * 8).reshape(6, 7, 8) + 100 * number
        write_volume(native_file(root, case, name), voxels)
    labels = np.zeros((12, 11, 10), np.uint8)
    labels[4, 5, 2:6] = [1, 2, 3, 4] if Path(case).name.startswith("BraTS-GLI") else [1, 2, 4, 4]
    write_volume(native_file(root, case, "seg"), labels)
    return root


def grids(size: int) -> dict[str, Modality]:
    """Return the five modalities on a cube."""
    return {name: VolumeModality(name=name, size=size) for name in NAMES} | {
        "tumour": MaskModality(name="tumour", size=size)
    }


def decoded_twin(root: Path, num_patients: int, size: int = 32) -> Decoded:
    write_twin(DATASET, root, TwinSpec(num_patients=num_patients, difficulty=0.2))
    return decode(DATASET, root, grids(size))


def all_examples(data: Decoded) -> TaskSet:
    return TaskSet(BRATS, data, np.arange(len(data.index)))


VARIABLES = [variable for variables in ICU.values() for variable in variables]


def write_ptbxl(root: Path, **changes: str) -> Path:
    """Write a one-row ``ptbxl_database.csv``; ``changes`` replace cells."""
    row = {
        "ecg_id": "7",
        "patient_id": "15709.0",
        "site": "2.0",
        "scp_codes": "{'NORM': 100.0, 'SR': 0.0}",
        "extra_beats": "",
        "strat_fold": "3",
        "filename_lr": "records100/00000/00007_lr",
    }
    pl.DataFrame([row | changes]).write_csv(root / "ptbxl_database.csv")
    return root


def dynamic(rows: Sequence[tuple[int, float]], values: Mapping[str, Sequence[float | None]]) -> pl.DataFrame:
    """A ``dyn`` table of (stay, hours since admission); variables not in ``values`` are never observed."""
    keys = {
        "stay_id": pl.Series([stay for stay, _ in rows], dtype=pl.Int32),
        "time": pl.Series([timedelta(hours=hours) for _, hours in rows], dtype=pl.Duration("ms")),
    }
    empty = [None] * len(rows)
    return pl.DataFrame(keys | {name: pl.Series(values.get(name, empty), dtype=pl.Float64) for name in VARIABLES})


def write_cohort(folder: Path, dyn: pl.DataFrame, outc: pl.DataFrame) -> None:
    """Write ``dyn`` and ``outc`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    dyn.write_parquet(folder / "dyn.parquet")
    outc.write_parquet(folder / "outc.parquet")
