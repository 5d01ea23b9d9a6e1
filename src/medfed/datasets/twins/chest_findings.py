"""What replaces air in a lung, finding by finding, drawn by its cause."""

from __future__ import annotations

import math

import numpy as np

from medfed.datasets.twins.chest_anatomy import Anatomy, Findings, Frame
from medfed.datasets.twins.chest_shapes import Map, bell, mottle, ramp


def replaced_air(frame: Frame, anatomy: Anatomy, findings: Findings, lungs: np.random.Generator) -> Map:
    """Share of lung air replaced by each finding, joined as independent layers: 1 − Π(1 − layer)."""
    fine, coarse = mottle(frame.x.shape, 14, lungs), mottle(frame.x.shape, 6, lungs)
    spots = lungs.uniform(size=(10, 4)).tolist()
    clear = np.ones_like(frame.x)
    if findings.ground_glass > 0:
        clear *= 1 - _ground_glass(frame, findings.ground_glass, spots, fine)
    if findings.consolidation > 0:
        clear *= 1 - _consolidation(frame, anatomy, findings.consolidation, coarse)
    if findings.effusion > 0:
        clear *= 1 - _effusion(frame, anatomy, findings.effusion)
    if findings.atelectasis > 0:
        clear *= 1 - _collapse(frame, findings.atelectasis, spots)
    if findings.oedema > 0:
        clear *= 1 - 0.65 * findings.oedema * bell(frame.hilum, 0.36) * (0.7 + 0.5 * fine)
    return np.clip(1 - clear, 0, 1)


def _ground_glass(frame: Frame, severity: float, spots: list[list[float]], fine: Map) -> Map:
    """Hazy patches in both lungs, peripheral, mostly low: COVID-19 pneumonia (Wong et al. 2020)."""
    haze = np.zeros_like(frame.x)
    for number, (lateral, height, size, weight) in enumerate(spots[: 5 + round(5 * severity)]):
        radius = 0.12 + 0.10 * size
        across = frame.x - (1 if number % 2 else -1) * (0.38 + 0.28 * lateral)
        along = frame.y + 0.30 - 0.80 * math.sqrt(height)
        haze += (0.6 + 0.4 * weight) * bell(across, radius) * bell(along, 1.2 * radius)
    return 0.5 * severity * np.minimum(haze, 1) * (0.5 + 0.8 * fine)


def _consolidation(frame: Frame, anatomy: Anatomy, severity: float, coarse: Map) -> Map:
    """One lobe full of fluid: dense, cut off by its fissure, with air-filled bronchi showing in it."""
    upper = anatomy.upper_lobe
    radius = 0.24 + 0.12 * severity
    across, along = (frame.u - 0.42) / (1.15 * radius), (frame.y - (-0.26 if upper else 0.26)) / radius
    distance = across * across + along * along
    fissure = ramp(-0.02 - frame.y if upper else frame.y - 0.02 + 0.25 * (frame.u - 0.4), 0.025)
    bronchi: Map = 1 - 0.5 * np.minimum(frame.vessels, 1)
    body: Map = np.exp(np.maximum(-distance * np.sqrt(distance), -20))
    density: Map = severity**0.7 * frame.sick * body * fissure * bronchi * (0.5 + 0.7 * coarse)
    return density


def _effusion(frame: Frame, anatomy: Anatomy, severity: float) -> Map:
    """Fluid in the pleural space: blunts the costophrenic angle first, then climbs the wall as a meniscus."""
    wall = np.minimum(frame.u / 0.80, 1)
    surface = 0.68 * anatomy.inspiration - severity * (0.30 + 0.52 * wall * wall * wall)
    other = 0.7 if anatomy.bilateral else 0.0
    return 0.95 * (other + (1 - other) * frame.sick) * ramp(frame.y - surface, 0.05)


def _collapse(frame: Frame, severity: float, spots: list[list[float]]) -> Map:
    """Atelectasis: one to three plate-like bands above the lifted diaphragm, and crowded, denser lung around them."""
    above = frame.floor - frame.y
    bands = np.zeros_like(frame.x)
    for lateral, slope, gap, _ in spots[: 1 + round(2 * severity)]:
        line = above - (0.06 + 0.24 * gap) - 0.5 * (slope - 0.5) * (frame.u - 0.4)
        bands = np.maximum(bands, bell(frame.u - 0.32 - 0.2 * lateral, 0.2) * bell(line, 0.024))
    crowded: Map = np.maximum(0.9 * bands, 0.6 * np.exp(np.maximum(above, 0) / -0.14))
    return severity * frame.sick * crowded
