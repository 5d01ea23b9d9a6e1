"""Decode PNG, JPEG and DICOM files to grey images in [0, 1], in MONOCHROME2 sense: the denser the tissue, the brighter.

Decoding is always complete: image libraries open truncated files gladly and fail, or not, only on the pixels.
DICOM grey values follow PS3.3 C.11: modality transformation (rescale), then VOI (look-up table or window).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
from jaxtyping import Float32, Float64, UInt8
from PIL import Image, UnidentifiedImageError
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_modality_lut, apply_voi

from medfed.core.errors import DataError
from medfed.datasets.base import Record

AGAIN = "download or export the file again"
GREY = ("MONOCHROME1", "MONOCHROME2")


# what pydicom and its decoders raise on damaged files
DICOM_ERRORS = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


def load_image(root: Path, record: Record, listed_in: str) -> Float32[np.ndarray, "row column"]:
    """Decode the one file of ``record``, by its suffix.

    Args:
        root: the dataset's root.
        record: a row of its index.
        listed_in: the table that names the file, for the message when the file is absent.

    Raises:
        DataError: the file is absent or cannot be decoded.
    """
    path = root / record["files"][0]
    if not path.is_file():
        raise DataError(
            f"the image is missing, but {listed_in} names it",
            where=path,
            hint=f"complete the download, or remove its row from {listed_in}",
        )
    return read_dicom(path) if path.suffix.lower() in (".dcm", ".dicom") else read_grey(path)


def read_grey(path: Path) -> Float32[np.ndarray, "row column"]:
    """Decode a PNG or JPEG (8 or 16 bit; colour becomes luma by ITU-R 601) to [0, 1] by the range of its bit depth.

    Raises:
        DataError: the file is absent, empty, truncated, damaged or not an image.
    """
    return decode_grey(_content(path), path)


def decode_grey(content: bytes, where: str | Path) -> Float32[np.ndarray, "row column"]:
    """Decode the bytes of a PNG or JPEG as :func:`read_grey` does; ``where`` says whose bytes they are.

    Raises:
        DataError: the bytes are cut short, damaged or not an image.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.verify()  # PNG checksums; decoding alone accepts some damage
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith("I;16"):
                return (np.asarray(image, np.float32) / 65535).astype(np.float32)
            return np.asarray(image.convert("L"), np.float32) / np.float32(255)
    except UnidentifiedImageError as error:
        raise DataError(
            f"not a readable PNG or JPEG; it begins with {content[:12]!r}", where=where, hint=AGAIN
        ) from error
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(f"the image is damaged or cut short ({error})", where=where, hint=AGAIN) from error


def read_dicom(path: Path) -> Float32[np.ndarray, "row column"]:
    """Decode a single-frame grey DICOM file to [0, 1].

    With a VOI look-up table or a window (the first of several) [0, 1] is what that maps to. Without one it is the range
    of the stored bits: stretching each image to its own extremes would let one bright marker dim the rest.
    MONOCHROME1 is inverted.

    Raises:
        DataError: the file is absent, empty, truncated, not DICOM, without pixels, in colour, of several frames, or
            compressed in a way no installed decoder knows.
    """
    content = _content(path)
    with _dicom_errors(path):
        dataset = pydicom.dcmread(io.BytesIO(content))
        _require_one_grey_frame(dataset, path)
        values = apply_modality_lut(dataset.pixel_array, dataset).astype(np.float64)
        grey = _display(values, dataset)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return grey.astype(np.float32)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the file cannot be read ({error.strerror})", where=path, hint="check that it is there and readable"
        ) from error
    if not content:
        raise DataError("the file is empty", where=path, hint=AGAIN)
    return content


@contextmanager
def _dicom_errors(path: Path) -> Iterator[None]:
    """Turn what pydicom raises on damaged or exotic files into a sentence."""
    try:
        yield
    except InvalidDicomError as error:
        raise DataError("not a DICOM file (it has no 'DICM' mark)", where=path, hint=AGAIN) from error
    except DICOM_ERRORS as error:
        reason = str(error).split("\n")[0].rstrip(":")
        hint = "export it as Explicit VR Little Endian" if "missing dependencies" in str(error) else AGAIN
        raise DataError(f"the pixels cannot be decoded ({reason})", where=path, hint=hint) from error


def _require_one_grey_frame(dataset: pydicom.FileDataset, path: Path) -> None:
    if "PixelData" not in dataset:
        raise DataError("the file ends before its pixels, or never had any", where=path, hint=AGAIN)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise DataError(
            f"the file has {dataset.NumberOfFrames} frames; one is expected",
            where=path,
            hint="export one frame per file",
        )
    if dataset.get("PhotometricInterpretation") not in GREY:
        raise DataError(
            f"PhotometricInterpretation is {dataset.get('PhotometricInterpretation')!r}; allowed: {', '.join(GREY)}",
            where=path,
            hint="export the radiograph in grey",
        )


def _display(
    values: Float64[np.ndarray, "row column"], dataset: pydicom.FileDataset
) -> Float64[np.ndarray, "row column"]:
    """Map modality values to [0, 1] by the VOI look-up table, else the window, else the range of the stored bits."""
    if dataset.get("VOILUTSequence"):
        mapped = apply_voi(np.rint(values).astype(np.int64), dataset)
        return mapped.astype(np.float64) / _full_scale(dataset.VOILUTSequence[0].LUTDescriptor[2])
    if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        centre, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
        return _window(values, centre, width, dataset.get("VOILUTFunction", "LINEAR"))
    low, high = _stored_range(dataset)
    return np.clip((values - low) / (high - low), 0, 1)


def _window(
    values: Float64[np.ndarray, "row column"], centre: float, width: float, function: str
) -> Float64[np.ndarray, "row column"]:
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


def write_grey(path: Path, grey: Float32[np.ndarray, "row column"]) -> None:
    """Write [0, 1] as an 8-bit grey PNG or JPEG, by the suffix; the twins' counterpart of :func:`read_grey`."""
    # PNG: noise does not shrink, so little effort gives the same size in half the time. JPEG ignores it.
    Image.fromarray(eight_bits(grey)).save(path, compress_level=1)


def eight_bits(grey: Float32[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Round [0, 1] to 0 … 255."""
    return np.asarray(np.rint(grey * 255), np.uint8)
