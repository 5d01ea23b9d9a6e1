"""Write phantoms as DICOM files in encodings that hospitals send, so that a demo takes the branches of decoding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from jaxtyping import Integer
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from medfed.twins.chest import WINDOW_CENTRE, WINDOW_WIDTH
from medfed.twins.chest_cohorts import Film


@dataclass(frozen=True)
class DicomStyle:
    """How a machine stores grey values.

    Attributes:
        bits: 8, or 12 in 16-bit words.
        inverted: MONOCHROME1.
        window: a window says where in the 12 bits the image lies.
    """

    bits: int
    inverted: bool
    window: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> DicomStyle:
        """Draw one: half 8 bits; a third of 12-bit files windowed; a fifth of all inverted."""
        bits = int(rng.choice((8, 12)))
        return cls(bits=bits, inverted=bool(rng.random() < 0.2), window=bits == 12 and bool(rng.random() < 0.33))


def write_dicom(path: Path, film: Film, patient: str, style: DicomStyle) -> None:
    """Write ``film`` as an uncompressed Computed Radiography image whose identifiers follow from ``patient``."""
    image, study, series = (generate_uid(entropy_srcs=[patient, level]) for level in ("image", "study", "series"))
    header = pydicom.Dataset()
    header.SOPClassUID, header.SOPInstanceUID = ComputedRadiographyImageStorage, image
    header.StudyInstanceUID, header.SeriesInstanceUID = study, series
    header.Modality, header.BodyPartExamined, header.ViewPosition = "CR", "CHEST", film.view
    header.PatientName = header.PatientID = patient
    header.PatientSex, header.PatientAge = film.sex, f"{film.age:03d}Y"
    _set_pixels(header, film, style)
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID, header.file_meta.MediaStorageSOPInstanceUID = header.SOPClassUID, image
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.save_as(path, enforce_file_format=True)


def _set_pixels(header: pydicom.Dataset, film: Film, style: DicomStyle) -> None:
    top = 2**style.bits - 1
    grey = 1 - film.grey if style.inverted else film.grey
    stored = np.rint(grey * top)
    if style.window:
        low, width = WINDOW_CENTRE - 0.5 - (WINDOW_WIDTH - 1) / 2, WINDOW_WIDTH - 1
        stored = np.rint(low + grey * width)
        header.WindowCenter, header.WindowWidth = WINDOW_CENTRE, WINDOW_WIDTH
    header.Rows, header.Columns = film.grey.shape
    header.SamplesPerPixel, header.PixelRepresentation = 1, 0
    header.PhotometricInterpretation = "MONOCHROME1" if style.inverted else "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = (8 if style.bits == 8 else 16), style.bits, style.bits - 1
    words: Integer[np.ndarray, "row column"] = stored.astype(np.uint8 if style.bits == 8 else "<u2")
    header.add_new("PixelData", "OB" if style.bits == 8 else "OW", words.tobytes())


def opacity_boxes(film: Film) -> list[tuple[float, float, float, float]]:
    """Return x, y, width, height in pixels of what stands in each lung; at least one box, around the densest spot."""
    middle = film.opacity.shape[1] // 2
    peak = float(film.opacity.max())
    boxes = []
    for left, half in ((0, film.opacity[:, :middle]), (middle, film.opacity[:, middle:])):
        rows, columns = np.nonzero(half >= 0.5 * peak)
        if rows.size:
            x, y = int(columns.min()), int(rows.min())
            boxes.append((float(left + x), float(y), float(columns.max() + 1 - x), float(rows.max() + 1 - y)))
    return boxes
