"""A frontal chest radiograph as a sum of attenuations: the phantom behind the twins of every chest X-ray dataset.

Tissue attenuates, air does not; lungs are air; findings put fluid or tissue where air was, or move the lungs' borders.
So a finding looks as its cause makes it look, and findings overlap as they do in patients. Bone is bright.

Write phantoms as DICOM files in encodings that hospitals send, so that a demo walks the branches of decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from jaxtyping import Integer
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from medfed.twins.chest_anatomy import (
    Anatomy,
    Findings,
    Frame,
    Map,
    Style,
    bell,
    blurred,
    frame_chest,
    mediastinum,
    ramp,
    replaced_air,
)
from medfed.twins.chest_cohorts import Film


def render(
    anatomy: Anatomy, findings: Findings, style: Style, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[Map, Map]:
    """Draw one film.

    Args:
        anatomy: the patient.
        findings: what is wrong, already scaled to how plainly it shows.
        style: the exposure.
        shape: rows and columns; wider than high shows more of the shoulders.
        rng: quantum noise.

    Returns:
        the film in [0, 1], and the share of lung air that findings replaced, per pixel in [0, 1].
    """
    lungs = np.random.default_rng(anatomy.pattern)  # a patient's vessels are the same on every film
    frame = frame_chest(anatomy, findings, style, shape, lungs)
    centre = mediastinum(frame, anatomy, findings)
    air = ramp(frame.wall - frame.u, 0.02) * ramp(frame.floor - frame.y, 0.015) * (1 - 0.9 * centre)
    opacity = replaced_air(frame, anatomy, findings, lungs)
    film = _attenuation(frame, anatomy, air * (1 - opacity), centre)
    return _expose(film, frame, style, rng), opacity * air


def _attenuation(frame: Frame, anatomy: Anatomy, air: Map, centre: Map) -> Map:
    """Add up what the beam meets: soft tissue, less the air, plus bones, heart and abdomen."""
    depth = np.sqrt(np.clip((frame.wall - frame.u) / 0.30, 0, 1))
    filled = air * depth * (1 - 0.32 * np.minimum(frame.vessels, 1.3))
    tissue = anatomy.build * (0.66 - 0.12 * frame.u * frame.u + 0.05 * frame.y)
    abdomen = ramp(frame.y - frame.floor, 0.02) * ramp(0.92 - frame.u, 0.06)
    total = tissue * (1 - 0.70 * filled) + 0.09 * np.maximum(centre, abdomen) + _bones(frame, anatomy)
    trachea = ramp(0.040 - frame.u, 0.02) * ramp(-0.22 - frame.y, 0.08)
    bubble = bell(frame.x - 0.36, 0.13) * bell(frame.y - frame.floor - 0.10, 0.07)
    return total - 0.16 * trachea - 0.25 * anatomy.gastric_air * bubble


def _bones(frame: Frame, anatomy: Anatomy) -> Map:
    """Spine with its discs, posterior and anterior ribs, clavicles."""
    u, y = frame.u, frame.y
    spine = ramp(0.075 - u, 0.03) * (0.75 + 0.25 * np.cos(48 * y))
    cage = ramp(frame.wall + 0.03 - u, 0.03) * ramp(u - 0.08, 0.05) * ramp(0.80 - y, 0.05)
    back = _rib(y + 0.08 * u - anatomy.rib_slope * u * u, anatomy.rib_phase, 0.17)
    front = _rib(y + 0.55 * u, anatomy.rib_phase + 0.4, 0.21)
    clavicle = bell(y + 0.62 + 0.24 * u - 0.05 * np.sin(5 * u), 0.030) * ramp(u - 0.07, 0.03) * ramp(0.80 - u, 0.04)
    return 0.12 * spine + cage * (0.10 * back + 0.045 * front) + 0.13 * clavicle


def _rib(height: Map, phase: float, spacing: float) -> Map:
    """Bands of bone at every ``spacing``, brighter along their cortical rims."""
    turns = height * (1 / spacing) + phase
    middle: Map = np.abs(turns - np.rint(turns))
    return ramp(0.20 - middle, 0.06) * (0.6 + 10 * middle * middle)


def _expose(film: Map, frame: Frame, style: Style, rng: np.random.Generator) -> Map:
    """Cut out the body, blur, expose, add quantum noise and the collimator's edge."""
    neck = 1.5 - 12 * np.maximum(frame.u - 0.2, 0)
    shoulders = frame.y + np.maximum(1.06 - 0.30 * frame.u, neck)
    film = film * ramp(shoulders, 0.04) * ramp(1.02 - frame.u, 0.04)
    film = blurred(film, style.blur * film.shape[0] / 96)
    film = np.maximum(style.gain * film + style.offset, 0) ** style.gamma
    film += style.noise * rng.standard_normal(film.shape, dtype=np.float32) * (0.5 + film)
    for axis, pixels in enumerate(film.shape):
        edge = round(0.5 * pixels * (1 - style.collimation))
        if edge > 0:
            film.swapaxes(0, axis)[[*range(edge), *range(-edge, 0)]] = 0
    return np.clip(film, 0, 1, out=film)


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


WINDOW_CENTRE, WINDOW_WIDTH = 1600, 2400


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
