"""Decode PNG, JPEG and DICOM files to grey images in [0, 1], in MONOCHROME2 sense: the denser the tissue, the brighter.

Decoding is always complete: image libraries open truncated files gladly and fail, or not, only on the pixels.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, UnidentifiedImageError

from medfed.core.errors import DataError
from medfed.datasets.base import Record, require

__all__ = ["load_image", "read_grey"]

AGAIN = "download or export the file again"


def load_image(root: Path, record: Record, listed_in: str) -> Float32[np.ndarray, "row column"]:
    """Decode the one file of ``record``, by its suffix; raise DataError if it is absent or cannot be decoded.

    ``listed_in`` is the table that names the file, for the message when it is absent.
    """
    path = root / record["files"][0]
    hint = f"complete the download, or remove its row from {listed_in}"
    require(path.is_file(), f"the image is missing, but {listed_in} names it", path, hint)
    if path.suffix.lower() not in (".dcm", ".dicom"):
        return read_grey(path)
    from medfed.datasets.dicom import read_dicom  # noqa: PLC0415 (large; loaded where it is used)

    return read_dicom(path)


def read_grey(path: Path) -> Float32[np.ndarray, "row column"]:
    """Decode a PNG or JPEG (8 or 16 bit; colour becomes luma by ITU-R 601) to [0, 1] by the range of its bit depth.

    Raises DataError if the file is absent, empty, truncated, damaged or not an image.
    """
    return decode_grey(content_of(path), path)


def decode_grey(content: bytes, where: str | Path) -> Float32[np.ndarray, "row column"]:
    """Decode the bytes of a PNG or JPEG as :func:`read_grey` does; ``where`` says whose bytes they are."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.verify()  # PNG checksums; decoding alone accepts some damage
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith("I;16"):
                return (np.asarray(image, np.float32) / 65535).astype(np.float32)
            return np.asarray(image.convert("L"), np.float32) / np.float32(255)
    except UnidentifiedImageError as error:
        what = f"not a readable PNG or JPEG; it begins with {content[:12]!r}"
        raise DataError(what, where=where, hint=AGAIN) from error
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(f"the image is damaged or cut short ({error})", where=where, hint=AGAIN) from error


def content_of(path: Path) -> bytes:
    """Return the bytes of a file that is there and not empty."""
    try:
        content = path.read_bytes()
    except OSError as error:
        what, hint = f"the file cannot be read ({error.strerror})", "check that it is there and readable"
        raise DataError(what, where=path, hint=hint) from error
    require(content, "the file is empty", path, AGAIN)
    return content


def write_grey(path: Path, grey: Float32[np.ndarray, "row column"]) -> None:
    """Write [0, 1] as an 8-bit grey PNG or JPEG, by the suffix; the twins' counterpart of :func:`read_grey`."""
    # PNG: noise does not shrink, so little effort gives the same size in half the time. JPEG ignores it.
    Image.fromarray(eight_bits(grey)).save(path, compress_level=1)


def eight_bits(grey: Float32[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Round [0, 1] to 0 … 255."""
    return np.asarray(np.rint(grey * 255), np.uint8)
