"""A 3-D scan on a grid of fixed size, and the mask that is drawn on it (Med-MMFL's tumour segmentation).

A dataset cuts all volumes of a patient by one box. Here they are padded to the grid, by their shape alone, so that
sequences and mask stay aligned. Intensities have no unit, so each volume is standardised by itself inside the brain, as
RFNet does (Ding et al. 2021, §4.1); nothing is pooled over patients.

Memory: a voxel takes 2 bytes per sequence (float16) and 1 in the mask, all in memory. A patient takes 0.3 MB on the
twins' 32³, and 44 MB on 160 × 192 × 160, which holds brains at 1 mm: 1,251 patients take 55 GB. Taking modalities away
at random (``missing``) needs the sequences twice.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float16, Shaped, UInt8
from pydantic import BeforeValidator, Field

from medfed.core.errors import DataError
from medfed.modalities.base import Modality

Side = Annotated[int, Field(ge=8, le=512)]
Cube = BeforeValidator(lambda value: (value, value, value) if isinstance(value, int) else value)
"""Takes a cube's one side as three sides."""
Grid = Annotated[tuple[Side, Side, Side], Cube]


class Volume(Modality):
    """Base of scan and mask: a grid of ``size`` voxels, one side of a cube or all three.

    A larger volume is refused, never cut.
    """

    size: Grid = (32, 32, 32)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The grid: sagittal, coronal and axial axis, as in the file."""
        return self.size

    def _centred(self, raw: Shaped[np.ndarray, "a b c"]) -> Shaped[np.ndarray, "i j k"]:
        """Pad with zeros to the grid, the volume in its middle."""
        spare = [room - have for have, room in zip(raw.shape, self.size, strict=True)]
        if min(spare) < 0:
            have, room = (" × ".join(map(str, shape)) for shape in (raw.shape, self.size))
            hint = f"set modalities.{self.name}.size, and that of the other sequences, to at least {list(raw.shape)}"
            raise DataError(f"a volume of {have} voxels does not fit the grid of {room}", hint=hint)
        return np.pad(raw, [(room // 2, room - room // 2) for room in spare])


class VolumeModality(Volume):
    """A skull-stripped scan: zero outside the brain."""

    units: ClassVar[str] = "scanner intensity"
    dtype: ClassVar[type[np.generic]] = np.float16

    def prepare(self, raw: Shaped[np.ndarray, "..."]) -> Float16[np.ndarray, "i j k"]:
        """Give the non-zero voxels zero mean and unit spread, and pad to the grid; outside the brain stays 0.

        Raises DataError as well if the volume is larger than the grid or without contrast.
        """
        _require_volume(raw)
        exact = raw.astype(np.float32)
        brain = exact != 0
        inside = exact[brain]
        if not np.isfinite(inside).all():
            raise DataError("a volume holds values that are not finite", hint="check the dataset's load")
        spread = float(inside.std(dtype=np.float64)) if inside.size else 0.0
        if spread == 0:
            raise DataError("a volume has no contrast: no two voxels of the brain differ", hint="leave the file out")
        exact[brain] = (inside - inside.mean(dtype=np.float64)) / spread
        return self._centred(exact.astype(np.float16))


class MaskModality(Volume):
    """A class per voxel, 0 the background. It is the truth: no task reads it as an input."""

    units: ClassVar[str] = "class"
    dtype: ClassVar[type[np.generic]] = np.uint8

    def prepare(self, raw: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "i j k"]:
        """Pad to the grid with background; raise DataError as well if the mask is larger than the grid."""
        _require_volume(raw)
        if raw.dtype != np.uint8:
            raise DataError(f"a mask of {raw.dtype}; expected uint8", hint="check the dataset's load")
        return self._centred(raw)


def _require_volume(raw: Shaped[np.ndarray, "..."]) -> None:
    if raw.ndim != 3 or 0 in raw.shape:
        raise DataError(f"a volume has shape {raw.shape}; expected three axes", hint="check the dataset's load")


_SCANS = [VolumeModality(name=name) for name in ("t1", "t1c", "t2", "flair")]
MODALITIES: tuple[Modality, ...] = (*_SCANS, MaskModality(name="tumour"))
