"""BraTS: gliomas in four MR sequences, with the tumour's parts drawn voxel by voxel (Med-MMFL's segmentation task).

Native layout, one folder per case and a NIfTI file per sequence; both namings, even side by side:

* 2018 to 2021: ``[HGG|LGG/]Brats18_TCIA01_…_1/Brats18_TCIA01_…_1_{t1,t1ce,t2,flair,seg}.nii.gz``; the code after
  ``Brats18_`` names the site. Labels: 1 necrotic and non-enhancing core, 2 oedema, 4 enhancing tumour.
* GLI 2023 and 2024: ``BraTS-GLI-00000-100/BraTS-GLI-00000-100-{t1n,t1c,t2w,t2f,seg}.nii.gz``; the last number is the
  time point. Labels: 1 non-enhancing core, 2 oedema, 3 enhancing tumour, 4 resection cavity.

Both become one convention, :data:`CLASSES`. A resection cavity is no tumour: it counts as background.
All volumes of a case are cut by one box, where any of its sequences is not zero; the truth has no part in it.
"""

from __future__ import annotations

import re
import zlib
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Shaped, UInt8

from medfed.core.errors import DataError
from medfed.datasets.base import Dataset, Raw, Record, require, require_file
from medfed.datasets.tables import read_csv

CLASSES = ("background", "necrotic or non-enhancing core", "oedema", "enhancing tumour")
GRADES = {"HGG": 1, "LGG": 0}
SITE_CODE = re.compile(r"Bra[tT][sS]1[789]_([A-Za-z0-9]+)_(\w+)_\d+")
TIMEPOINT = re.compile(r"(BraTS-[A-Z]+-\d+)-\d+")
FILE_AGAIN = "the file is truncated or damaged: download it again"
SAME_GRID = "all files of a case lie on one grid of 1 mm voxels: download the case again"


class Naming(NamedTuple):
    """How a release names its files, and its labels → our classes."""

    separator: str
    sequences: dict[str, str]
    classes: dict[int, int]


PARTS = ("t1", "t1c", "t2", "flair", "tumour")
NAMINGS = (
    Naming("_", dict(zip(("t1", "t1ce", "t2", "flair", "seg"), PARTS, strict=True)), {0: 0, 1: 1, 2: 2, 4: 3}),
    Naming("-", dict(zip(("t1n", "t1c", "t2w", "t2f", "seg"), PARTS, strict=True)), {0: 0, 1: 1, 2: 2, 3: 3, 4: 0}),
)


class BraTS(Dataset):
    """BraTS glioma training data, 2018 to 2024."""

    name = "brats"
    modalities = ("t1", "t1c", "t2", "flair")
    truths = ("tumour",)
    targets = ("segmented", "high_grade")
    marker = "Bra[tT][sS]*/Bra[tT][sS]*.nii*"
    simulator = "medfed.twins.brain:write_brain_twin"

    def locate(self, data_root: Path) -> Path:
        """Find the folder of the cases, or the one above ``HGG`` and ``LGG``."""
        root = super().locate(data_root)
        return root.parent if root.name in GRADES and root != data_root else root

    def index(self, root: Path) -> pl.DataFrame:
        """One row per case. ``high_grade`` is 1 under HGG, 0 under LGG, else null.

        A case must hold a sequence, and none twice. ``sites.csv``, if present, names a case's or a patient's site.
        """
        path, sites = root / "sites.csv", {}
        if path.exists():
            sites = dict(read_csv(path, ("case", "site")).select("case", "site").drop_nulls().iter_rows())
        cases = [sorted(above.glob("Bra[tT][sS]*")) for above in (root, *(root / grade for grade in GRADES))]
        rows = [_row(root, folder, sites) for folder in chain.from_iterable(cases) if folder.is_dir()]
        schema = {"site": pl.Utf8, "split": pl.Utf8, "segmented": pl.Int8, "high_grade": pl.Int8}
        return pl.DataFrame(rows, schema_overrides=schema)

    def load(self, root: Path, record: Record) -> Raw:
        """Return the sequences in scanner units and ``tumour`` as :data:`CLASSES`, cut to the brain's bounding box.

        Raises DataError as well if the segmentation is missing or has an unknown label, or a tumour reaches beyond the
        brain. All files need one grid of 1 mm voxels.
        """
        scans = {_sequence(Path(file)): (root / file, read_nifti(root / file)) for file in record["files"]}
        hint = "take the training set (validation cases are published without), or leave bad ones out: --skip-bad"
        case = root / Path(record["files"][0]).parent
        require("tumour" in scans, "the case has no segmentation", case, hint)
        _require_one_grid(scans)
        path, truth = scans.pop("tumour")
        mask = _classes(path, truth.voxels)
        brain = np.any([scan.voxels != 0 for _, scan in scans.values()], axis=0)
        box = _bounding_box(brain, path.parent)
        inside = np.count_nonzero(mask) == np.count_nonzero(mask[box])
        require(inside, "the tumour reaches beyond the brain", path, SAME_GRID)
        return {name: scan.voxels[box] for name, (_, scan) in scans.items()} | {"tumour": mask[box]}


class Scan(NamedTuple):
    """Voxels as stored (scaled if the header says so), and the size of one along each axis."""

    voxels: Shaped[np.ndarray, "i j k"]
    spacing_mm: tuple[float, ...]


def read_nifti(path: Path) -> Scan:
    """Read a NIfTI file. nibabel opens truncated files and fails only on the voxels, so these are read here.

    Raises DataError if it is missing, truncated, not NIfTI, not three-dimensional, or a voxel is not finite.
    """
    import nibabel  # noqa: PLC0415 (large; loaded where it is used)
    from nibabel.filebasedimages import ImageFileError  # noqa: PLC0415
    from nibabel.spatialimages import HeaderDataError  # noqa: PLC0415

    require_file(path)
    try:
        image = nibabel.load(path)
        voxels = np.asanyarray(image.dataobj)
        spacing = tuple(float(size) for size in image.header.get_zooms())
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        kind = f"{type(error).__name__}, {path.stat().st_size} bytes"
        raise DataError(f"not a readable NIfTI volume ({kind})", where=path, hint=FILE_AGAIN) from error
    require(voxels.ndim == 3, f"a volume of shape {voxels.shape}; expected three axes", path, FILE_AGAIN)
    bad = voxels.size - int(np.isfinite(voxels).sum())
    require(not bad, f"{bad} of {voxels.size} voxels are not finite", path, FILE_AGAIN)
    return Scan(voxels, spacing)


def write_nifti(path: Path, voxels: Shaped[np.ndarray, "i j k"]) -> None:
    """Write voxels of 1 mm, in the orientation of BraTS (left, posterior, superior). Equal voxels, equal bytes."""
    import nibabel  # noqa: PLC0415 (large; loaded where it is used)

    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.0, 1.0])), path)


def _row(root: Path, folder: Path, sites: dict[str, str]) -> dict[str, object]:
    files: dict[str, str] = {}
    for file in sorted(folder.glob(f"{folder.name}[_-]*.nii*")):
        name = _sequence(file)
        require(name not in files, f"there are two files of {name!r}", folder, "keep one of them")
        files[name] = str(file.relative_to(root))
    some = files.keys() - {"tumour"}
    require(some, "the case has no sequence", folder, "download the case again, or take it away")
    patient, site = _patient_and_site(folder.name)
    return {
        "example": folder.name,
        "patient": f"brats:{patient}",
        "site": sites.get(folder.name, sites.get(patient, site)),
        "split": None,
        "files": list(files.values()),
        "segmented": 1 if "tumour" in files else None,
        "high_grade": GRADES.get(folder.parent.name),
    }


def _patient_and_site(case: str) -> tuple[str, str | None]:
    """Return the case's name without its time point, and the site's code where the name has one."""
    if coded := SITE_CODE.fullmatch(case):
        return case.rpartition("_")[0], coded[1]
    if timed := TIMEPOINT.fullmatch(case):
        return timed[1], None
    return case, None


def _naming(file: Path) -> Naming:
    return NAMINGS[0] if file.name.startswith(f"{file.parent.name}_") else NAMINGS[1]


def _sequence(file: Path) -> str:
    """Return what a file holds: a modality, or ``tumour``."""
    naming = _naming(file)
    ending = file.name.removeprefix(file.parent.name + naming.separator).partition(".nii")[0]
    unknown = f"unknown sequence {ending!r}; known: {', '.join(naming.sequences)}"
    require(ending in naming.sequences, unknown, file, "take the file away")
    return naming.sequences[ending]


def _require_one_grid(scans: dict[str, tuple[Path, Scan]]) -> None:
    wanted = scans["tumour"][1].voxels.shape
    for path, (voxels, spacing) in scans.values():
        wrong_grid = f"a grid of {voxels.shape} voxels; the segmentation has {wanted}"
        require(voxels.shape == wanted, wrong_grid, path, SAME_GRID)
        one_mm = np.allclose(spacing, 1.0, atol=1e-3)
        require(one_mm, f"voxels of {spacing} mm; BraTS has 1 mm", path, SAME_GRID)


def _classes(path: Path, labels: Shaped[np.ndarray, "i j k"]) -> UInt8[np.ndarray, "i j k"]:
    classes, known = np.zeros(labels.shape, np.uint8), _naming(path).classes
    for label in np.unique(labels).tolist():
        unknown = f"unknown label {label:g}; known in this release: {', '.join(map(str, known))}"
        require(label in known, unknown, path, "download the segmentation again")
        classes[labels == label] = known[label]
    return classes


def _bounding_box(brain: Bool[np.ndarray, "i j k"], where: Path) -> tuple[slice, ...]:
    from scipy.ndimage import find_objects  # noqa: PLC0415 (large; loaded where it is used)

    require(brain.any(), "every sequence is zero everywhere", where, "download the case again")
    box: tuple[slice, ...] = find_objects(brain.astype(np.uint8))[0]
    return box


DATASETS: tuple[Dataset, ...] = (BraTS(),)
