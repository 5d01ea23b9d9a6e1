"""A frontal chest radiograph as a sum of attenuations: the phantom behind the twins of every chest X-ray dataset.

Tissue attenuates, air does not; lungs are air; findings put fluid or tissue where air was, or move the lungs' borders.
So a finding looks as its cause makes it look, and findings overlap as they do in patients. Bone is bright.

Write phantoms as DICOM files in encodings that hospitals send, so that a demo walks the branches of decoding.
"""

from __future__ import annotations

import numpy as np

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


WINDOW_CENTRE, WINDOW_WIDTH = 1600, 2400
