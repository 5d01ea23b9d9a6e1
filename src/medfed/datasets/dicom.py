"""Decode DICOM files to grey images. Grey values follow PS3.3 C.11: rescale, then VOI (look-up table or window)."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pydicom
from jaxtyping import Float32, Float64
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_modality_lut, apply_voi

from medfed.core.errors import DataError
from medfed.datasets.base import require
from medfed.datasets.images import AGAIN, content_of

Values = Float64[np.ndarray, "row column"]
GREY = ("MONOCHROME1", "MONOCHROME2")
DAMAGED = (AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError, struct.error)
"""Errors of pydicom and its decoders on damaged files."""


def read_dicom(path: Path) -> Float32[np.ndarray, "row column"]:
    """Decode a single-frame grey DICOM file to [0, 1].

    With a VOI look-up table or a window (the first of several) [0, 1] is what that maps to. Without one it is the range
    of the stored bits: stretching each image to its own extremes would let one bright marker dim the rest.
    MONOCHROME1 is inverted.

    Raises DataError if the file is absent, damaged, without pixels, in colour, of several frames, or compressed in a
    way no installed decoder knows.
    """
    content = content_of(path)
    try:
        dataset = pydicom.dcmread(io.BytesIO(content))
        _require_one_grey_frame(dataset, path)
        values = apply_modality_lut(dataset.pixel_array, dataset).astype(np.float64)
        grey = _display(values, dataset)
    except InvalidDicomError as error:
        raise DataError("not a DICOM file (it has no 'DICM' mark)", where=path, hint=AGAIN) from error
    except DAMAGED as error:
        reason = str(error).split("\n")[0].rstrip(":")
        hint = "export it as Explicit VR Little Endian" if "missing dependencies" in str(error) else AGAIN
        raise DataError(f"the pixels cannot be decoded ({reason})", where=path, hint=hint) from error
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return grey.astype(np.float32)


def _require_one_grey_frame(dataset: pydicom.FileDataset, path: Path) -> None:
    require("PixelData" in dataset, "the file ends before its pixels, or never had any", path, AGAIN)
    frames, kind = dataset.get("NumberOfFrames"), dataset.get("PhotometricInterpretation")
    one = int(frames or 1) <= 1
    require(one, f"the file has {frames} frames; one is expected", path, "export one frame per file")
    wrong_kind = f"PhotometricInterpretation is {kind!r}; allowed: {', '.join(GREY)}"
    require(kind in GREY, wrong_kind, path, "export the radiograph in grey")


def _display(values: Values, dataset: pydicom.FileDataset) -> Values:
    """Map modality values to [0, 1] by the VOI look-up table, else the window, else the range of the stored bits."""
    if dataset.get("VOILUTSequence"):
        mapped = apply_voi(np.rint(values).astype(np.int64), dataset)
        return mapped.astype(np.float64) / _full_scale(dataset.VOILUTSequence[0].LUTDescriptor[2])
    if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        centre, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
        return _window(values, centre, width, dataset.get("VOILUTFunction", "LINEAR"))
    low, high = _stored_range(dataset)
    return np.clip((values - low) / (high - low), 0, 1)


def _window(values: Values, centre: float, width: float, function: str) -> Values:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, with [0, 1] as the output range."""
    if width < 1:
        raise ValueError(f"WindowWidth is {width:g}; it must be at least 1")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR":
        centre, width = centre - 0.5, max(width - 1, 1e-6)
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _stored_range(dataset: pydicom.FileDataset) -> tuple[float, float]:
    """Return the lowest and highest modality value that the stored bits can hold."""
    if dataset.get("ModalityLUTSequence"):
        return 0.0, _full_scale(dataset.ModalityLUTSequence[0].LUTDescriptor[2])
    offset = 2 ** (int(dataset.BitsStored) - 1) if dataset.PixelRepresentation else 0
    stored = np.array([-offset, _full_scale(dataset.BitsStored) - offset])
    low, high = np.sort(apply_modality_lut(stored, dataset))
    return float(low), float(high)


def _full_scale(bits: int) -> float:
    return float(2 ** int(bits) - 1)


def _first(value: object) -> float:
    """Return the first of several alternative windows."""
    return float(value[0]) if isinstance(value, MultiValue) else float(str(value))
