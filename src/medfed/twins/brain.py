"""The synthetic twin of BraTS: phantom brains with a glioma, in the two native layouts.

A tumour looks different in every sequence, as in patients. Oedema is bright in FLAIR and T2, the enhancing rim only in
contrast-enhanced T1, the necrotic core dark in T1. So each sequence holds information that the others lack. There are
bright spots of age, too, that are no tumour. The scanners of five sites differ.
Every other patient is written under 2018's names, the others under GLI 2024's, some of them at two time points.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, UInt8
from scipy.ndimage import gaussian_filter, zoom

from medfed.core.rng import numpy_rng
from medfed.datasets.brats import write_nifti
from medfed.study.data import TwinSpec

Field = Float[np.ndarray, "i j k"]
SHARE_HIGH_GRADE = 0.7
SHARE_SECOND_TIMEPOINT = 0.2
FIRST_PATIENT = 9000
LABEL_2018 = np.array([0, 1, 2, 4], np.uint8)
"""Class → label of 2018; in 2024 class and label are the same."""
SEQUENCES = {"t1": ("t1", "t1n"), "t1c": ("t1ce", "t1c"), "t2": ("t2", "t2w"), "flair": ("flair", "t2f")}


def write_brain_twin(root: Path, spec: TwinSpec) -> None:
    """Write every case and ``sites.csv``. A side has a third of ``spec.image_size`` in voxels, 32 to 48."""
    side = min(max(spec.image_size // 3, 32), 48)
    rows = []
    for number in range(spec.num_patients):
        rng = numpy_rng("brain", spec.seed, number)
        site = _site(number, rng)
        high_grade = bool(rng.random() < SHARE_HIGH_GRADE)
        second = bool(rng.random() < SHARE_SECOND_TIMEPOINT)
        identity = FIRST_PATIENT + number
        if number % 2:
            patient = f"BraTS-GLI-{identity:05d}"
            cases = [Path(f"{patient}-{100 + visit}") for visit in range(1 + second)]
            rows.append({"case": patient, "site": site.code})
        else:
            cases = [Path("HGG" if high_grade else "LGG", f"Brats18_{site.code}_{identity}_1")]
        for case in cases:
            _write_case(root / case, _volumes(site, high_grade, side, spec.difficulty, rng))
    pl.DataFrame(rows, schema={"case": pl.Utf8, "site": pl.Utf8}).write_csv(root / "sites.csv")


def _site(number: int, rng: np.random.Generator) -> Site:
    """Draw a site; the first patients go around, so that none is empty."""
    drawn = int(rng.choice(len(SITES), p=[site.share for site in SITES]))
    return SITES[number] if number < len(SITES) else SITES[drawn]


def _volumes(
    site: Site, high_grade: bool, side: int, difficulty: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return the four sequences (int16) and ``seg`` (classes)."""
    brain, tissue = _anatomy(side, rng)
    tumour = np.where(brain, _tumour(side, high_grade, rng), 0).astype(np.uint8)
    spots = brain & (tumour == 0) & (_rough(side, 9, rng) > 2.4)
    strength = min(2 * (1 - difficulty), 1.5)
    volumes: dict[str, np.ndarray] = {"seg": tumour}
    for name in SEQUENCES:
        clean = tissue @ TISSUE[name] + strength * CONTRAST[name][tumour] * (1 + 0.15 * _rough(side, 5, rng))
        clean = clean + 0.6 * strength * CONTRAST[name][2] * spots
        blurred = gaussian_filter(clean, site.blur)
        shaded = blurred * (1 + site.shading * _rough(side, 3, rng))
        noisy = shaded + site.noise * (0.5 + difficulty) * rng.standard_normal(clean.shape)
        volumes[name] = np.where(brain, np.maximum(noisy * site.gain, 1), 0).astype(np.int16)
    return volumes


def _anatomy(side: int, rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "i j k"], Float[np.ndarray, "i j k 3"]]:
    """Return the brain's mask, and the share of white matter, grey matter and fluid per voxel."""
    radii = np.array([0.78, 0.9, 0.74]) * rng.uniform(0.93, 1.04, 3)
    depth = 1 - np.sqrt(sum((axis / radius) ** 2 for axis, radius in zip(_axes(side), radii, strict=True)))
    ventricle = np.sqrt(
        sum((axis / radius) ** 2 for axis, radius in zip(_axes(side), radii * (0.16, 0.34, 0.2), strict=True))
    )
    grey = 1 / (1 + np.exp((depth - 0.16 + 0.04 * _rough(side, 10, rng)) / 0.03))
    fluid = 1 / (1 + np.exp((ventricle - 1) / 0.08))
    tissue = np.stack([(1 - grey) * (1 - fluid), grey * (1 - fluid), fluid], -1)
    return (depth > 0).astype(np.uint8), tissue


def _tumour(side: int, high_grade: bool, rng: np.random.Generator) -> UInt8[np.ndarray, "i j k"]:
    """Return classes: oedema around a core, and in most high grades an enhancing rim around necrosis."""
    centre = rng.uniform(-0.42, 0.42, 3)
    distance = np.sqrt(sum((axis - place) ** 2 for axis, place in zip(_axes(side), centre, strict=True)))
    distance = distance * (1 + 0.12 * _rough(side, 6, rng))
    radius = rng.uniform(0.34, 0.5)
    core = radius * rng.uniform(0.65, 0.85)
    necrosis = core * (rng.uniform(0.5, 0.75) if high_grade or rng.random() < 0.3 else 1.0)
    return np.select([distance < necrosis, distance < core, distance < radius], [1, 3, 2], 0).astype(np.uint8)


def _axes(side: int) -> tuple[Field, ...]:
    """Return the three coordinates, −1 to 1 from face to face."""
    line = (np.arange(side) + 0.5) / side * 2 - 1
    return tuple(np.meshgrid(line, line, line, indexing="ij", sparse=True))


def _rough(side: int, knots: int, rng: np.random.Generator) -> Field:
    """Return a smooth random field, about standard normal at its ``knots``³ knots."""
    coarse = rng.standard_normal((knots,) * 3)
    smooth: np.ndarray = zoom(coarse, side / knots, order=1, mode="nearest", grid_mode=True)
    return smooth


def _write_case(folder: Path, volumes: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    gli = folder.name.startswith("BraTS-GLI")
    separator = "-" if gli else "_"
    truth = volumes["seg"] if gli else LABEL_2018[volumes["seg"]]
    write_nifti(folder / f"{folder.name}{separator}seg.nii.gz", truth)
    for name, suffixes in SEQUENCES.items():
        write_nifti(folder / f"{folder.name}{separator}{suffixes[gli]}.nii.gz", volumes[name])


TISSUE = {
    "t1": np.array([1.0, 0.75, 0.35]),
    "t1c": np.array([1.0, 0.8, 0.35]),
    "t2": np.array([0.6, 0.75, 1.3]),
    "flair": np.array([0.7, 0.85, 0.3]),
}
"""Intensity of white matter, grey matter and fluid."""
CONTRAST = {
    "t1": np.array([0.0, -0.4, -0.15, -0.1]),
    "t1c": np.array([0.0, -0.35, -0.1, 0.8]),
    "t2": np.array([0.0, 0.5, 0.45, 0.2]),
    "flair": np.array([0.0, 0.1, 0.55, 0.3]),
}
"""Contrast of background, core, oedema and enhancing tumour to it."""


class Site(NamedTuple):
    """A scanner: share of patients, T1 intensity of white matter, noise relative to it, blur in voxels, shading."""

    code: str
    share: float
    gain: float
    noise: float
    blur: float
    shading: float


SITES = (
    Site("2013", 0.1, 250, 0.14, 0.4, 0.05),
    Site("CBICA", 0.3, 900, 0.06, 0.6, 0.12),
    Site("TCIA01", 0.2, 400, 0.1, 0.5, 0.03),
    Site("TCIA02", 0.25, 320, 0.12, 0.9, 0.08),
    Site("TCIA06", 0.15, 600, 0.08, 0.3, 0.15),
)
