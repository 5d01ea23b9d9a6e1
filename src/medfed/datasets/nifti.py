"""Read and write NIfTI volumes. nibabel opens truncated files and fails only on the voxels, so these are read here."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from jaxtyping import Shaped
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from medfed.core.errors import DataError
from medfed.datasets.base import require, require_file

AGAIN = "the file is truncated or damaged: download it again"
DAMAGED = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error)


class Scan(NamedTuple):
    """Voxels as stored (scaled if the header says so), and the size of one along each axis."""

    voxels: Shaped[np.ndarray, "i j k"]
    spacing_mm: tuple[float, ...]


def read_nifti(path: Path) -> Scan:
    """Read a NIfTI file.

    Raises DataError if it is missing, truncated, not NIfTI, not three-dimensional, or a voxel is not finite.
    """
    require_file(path)
    try:
        image = nibabel.load(path)
        voxels = np.asanyarray(image.dataobj)
        spacing = tuple(float(size) for size in image.header.get_zooms())
    except DAMAGED as error:
        kind = f"{type(error).__name__}, {path.stat().st_size} bytes"
        raise DataError(f"not a readable NIfTI volume ({kind})", where=path, hint=AGAIN) from error
    require(voxels.ndim == 3, f"a volume of shape {voxels.shape}; expected three axes", path, AGAIN)
    bad = voxels.size - int(np.isfinite(voxels).sum())
    require(not bad, f"{bad} of {voxels.size} voxels are not finite", path, AGAIN)
    return Scan(voxels, spacing)


def write_nifti(path: Path, voxels: Shaped[np.ndarray, "i j k"]) -> None:
    """Write voxels of 1 mm, in the orientation of BraTS (left, posterior, superior). Equal voxels, equal bytes."""
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.0, 1.0])), path)
