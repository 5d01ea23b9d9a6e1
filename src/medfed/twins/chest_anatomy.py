"""The anatomy of a drawn chest: its findings, build and exposure, its borders on the film, and the shapes of findings.

Coordinates: x to the right of the film (the patient's left), y downwards, both about [−1, 1]. The distance
u = |x − midline| counts outwards on both sides, so one pass draws both lungs. Maps are soft shapes in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32


@dataclass(frozen=True)
class Findings:
    """Findings of a chest: severity in [0, 1] by cause; 0 is absent."""

    ground_glass: float = 0.0
    consolidation: float = 0.0
    effusion: float = 0.0
    atelectasis: float = 0.0
    wide_mediastinum: float = 0.0
    cardiomegaly: float = 0.0
    oedema: float = 0.0

    def scaled(self, factor: float) -> Findings:
        """Return the same findings with severities times ``factor``, at most 1."""
        return Findings(**{name: min(1.0, factor * value) for name, value in vars(self).items()})


def mediastinum(frame: Frame, anatomy: Anatomy, findings: Findings) -> Map:
    """Heart, great vessels and aortic knob: the share of the beam they take, in [0, 1]."""
    size = anatomy.heart * (1 + 0.42 * findings.cardiomegaly)
    dx, dy = frame.x - 0.11 * size, frame.y - 0.31
    along, across = (0.80 * dx + 0.60 * dy) / (0.38 * size), (0.80 * dy - 0.60 * dx) / (0.28 * size)
    heart = ramp(1 - np.sqrt(along * along + across * across), 0.06)
    band = 0.105 * anatomy.mediastinum + 0.02 * frame.left + 0.07 * ramp(frame.y + 0.02, 0.16)
    knob = 0.055 * bell(frame.y + 0.30, 0.09) * frame.left
    wide = 0.16 * findings.wide_mediastinum * bell(frame.y + 0.28, 0.28)
    return np.maximum(heart, ramp(band + knob + wide - frame.u, 0.02))


@dataclass(frozen=True)
class Anatomy:
    """One patient's chest, and where findings sit in it. Sizes are relative to an average adult.

    Attributes:
        scale, inspiration, build, heart, mediastinum: size of the chest, depth of breath, thickness, and widths.
        rib_slope, rib_phase: curvature of the ribs, and where the first one is.
        gastric_air: 1 with an air bubble under the left dome, else 0.
        side: of one-sided findings, 1 the patient's left, −1 the right; bilateral: an effusion is on both sides.
        upper_lobe: a consolidation is above the fissure.
        pattern: seed of vessels and patches.
    """

    scale: float
    inspiration: float
    build: float
    heart: float
    mediastinum: float
    rib_slope: float
    rib_phase: float
    gastric_air: float
    side: int
    bilateral: bool
    upper_lobe: bool
    pattern: int

    @classmethod
    def draw(cls, rng: np.random.Generator, *, child: bool = False) -> Anatomy:
        """Draw a patient; a child is slimmer, with a relatively larger heart and thymus."""
        return cls(
            scale=float(rng.normal(0.92 if child else 1.0, 0.045)),
            inspiration=float(rng.normal(0.93 if child else 1.0, 0.07)),
            build=float(rng.normal(0.85 if child else 1.0, 0.12)),
            heart=float(rng.normal(1.08 if child else 1.0, 0.07)),
            mediastinum=float(rng.normal(1.15 if child else 1.0, 0.13)),
            rib_slope=float(rng.normal(0.42, 0.06)),
            rib_phase=float(rng.uniform()),
            gastric_air=float(rng.uniform() < 0.5),
            side=int(rng.choice((-1, 1))),
            bilateral=bool(rng.uniform() < 0.4),
            upper_lobe=bool(rng.uniform() < 0.5),
            pattern=int(rng.integers(2**31)),
        )


@dataclass(frozen=True)
class Style:
    """One exposure: how the patient stood and what the machine did.

    Attributes:
        tilt: rotation in radians; shift_x, shift_y: off centre, in half film heights.
        gain, offset, gamma: exposure curve; blur: Gaussian sigma in pixels of a film 96 high.
        noise: standard deviation of quantum noise at half density.
        collimation: half width of the open field, in half films; above 1 there is no edge.
    """

    tilt: float
    shift_x: float
    shift_y: float
    gain: float
    offset: float
    gamma: float
    blur: float
    noise: float
    collimation: float

    @classmethod
    def draw(cls, rng: np.random.Generator, noise: float) -> Style:
        """Draw an exposure on one of four machines; ``noise`` is the mean standard deviation of quantum noise."""
        machine = int(rng.integers(4))
        return cls(
            tilt=float(rng.normal(0, 0.03)),
            shift_x=float(rng.normal(0, 0.03)),
            shift_y=float(rng.normal(0, 0.03)),
            gain=float(rng.normal((0.90, 1.00, 1.08, 1.00)[machine], 0.04)),
            offset=float(rng.normal((0.02, 0.0, -0.03, 0.03)[machine], 0.02)),
            gamma=float(rng.normal((1.0, 0.85, 1.15, 1.0)[machine], 0.05)),
            blur=(0.3, 0.5, 0.7, 0.9)[machine],
            noise=noise * float(rng.uniform(0.7, 1.3)),
            collimation=float(rng.uniform(0.93, 1.1)),
        )


Map = Float32[npt.NDArray[np.floating], "row column"]


@dataclass(frozen=True)
class Frame:
    """Coordinates and borders of one chest on one pixel grid.

    Attributes:
        x, y: position in the patient; u: distance from the midline.
        left: 1 on the patient's left, 0 on the right; sick: 1 on the side of one-sided findings.
        wall: where the lung ends sideways, as a u; floor: where it ends below, as a y.
        hilum: distance from the lung's root; vessels: their density.
    """

    x: Map
    y: Map
    u: Map
    left: Map
    sick: Map
    wall: Map
    floor: Map
    hilum: Map
    vessels: Map


def frame_chest(
    anatomy: Anatomy, findings: Findings, style: Style, shape: tuple[int, int], lungs: np.random.Generator
) -> Frame:
    """Lay the chest out on a grid of ``shape``; ``lungs`` draws the vessels."""
    column, row = pixel_grid(shape)
    cos, sin = math.cos(style.tilt) / anatomy.scale, math.sin(style.tilt) / anatomy.scale
    pull = 0.07 * findings.atelectasis * anatomy.side  # collapse draws the midline to its side
    x = cos * column + sin * row - (style.shift_x + pull)
    y = cos * row - sin * column - style.shift_y
    u, left = np.abs(x), (x > 0).astype(np.float32)
    sick = left if anatomy.side > 0 else 1 - left
    wall = 0.82 * (1 - np.clip((0.32 - y) / 1.06, 0, 1) ** 2.4) ** 0.6
    right, down = u - 0.15, y + 0.04
    hilum = np.sqrt(right * right + down * down)
    vessels = (1 + 0.8 * findings.oedema) * _vessels(hilum, np.arctan2(down, right), left, lungs)
    return Frame(x, y, u, left, sick, wall, _diaphragm(u, left, sick, anatomy, findings), hilum, vessels)


def _diaphragm(u: Map, left: Map, sick: Map, anatomy: Anatomy, findings: Findings) -> Map:
    """Two domes, the patient's right one higher; they fall off to the costophrenic angles. Collapse lifts one."""
    base = 0.61 * anatomy.inspiration + 0.06 * left - 0.24 * findings.atelectasis * sick
    bow = (u - 0.36) / 0.44
    return base - 0.17 * (1 - np.minimum(bow * bow, 1.4))


def _vessels(hilum: Map, angle: Map, left: Map, lungs: np.random.Generator) -> Map:
    """Branches that leave the hilum, bend, divide once and taper."""
    turn, stem, twig = (b + (a - b) * left for a, b in lungs.uniform(0, 2 * math.pi, (3, 2)).tolist())
    bend = 0.5 * np.sin(7 * hilum + turn)
    stems: Map = np.maximum(np.cos(7 * (angle + bend) + stem), 0)
    twigs: Map = np.maximum(np.cos(15 * (angle - bend) + twig), 0)
    near, far = bell(hilum, 0.22), bell(hilum, 0.50)
    return stems * stems * stems * near + 0.7 * twigs * twigs * twigs * (far - near) + 1.1 * bell(hilum, 0.077)


def ramp(distance: Map, softness: float) -> Map:
    """0 outside, 1 inside, linear over ± ``softness`` around the border."""
    ramp = distance * (0.5 / softness)
    ramp += 0.5
    return np.clip(ramp, 0, 1, out=ramp)


def bell(distance: Map, width: float) -> Map:
    """exp(−(distance/width)²), floored at e⁻²⁰: denormal numbers would make the rest ten times slower."""
    scaled = distance * (1 / width)
    scaled *= -scaled
    np.maximum(scaled, -20, out=scaled)
    np.exp(scaled, out=scaled)
    return scaled


@lru_cache(maxsize=8)
def pixel_grid(shape: tuple[int, ...]) -> tuple[Map, Map]:
    """Return pixel centres: x spans [−columns/rows, columns/rows], y spans [−1, 1]."""
    rows, columns = shape
    row = (np.arange(rows, dtype=np.float32) * 2 + 1) / rows - 1
    column = ((np.arange(columns, dtype=np.float32) * 2 + 1) / columns - 1) * (columns / rows)
    x, y = np.meshgrid(column, row)
    return x, y


def mottle(shape: tuple[int, ...], cells: int, lungs: np.random.Generator) -> Map:
    """Smooth random texture in [0, 1] of about ``cells`` patches per side."""
    rows, columns = (_interpolation(pixels, cells) for pixels in shape)
    return rows @ lungs.random((cells, cells), dtype=np.float32) @ columns.T


@lru_cache(maxsize=16)
def _interpolation(pixels: int, cells: int) -> Map:
    """Linear interpolation from ``cells`` knots to ``pixels`` points, as a matrix."""
    place = np.linspace(0, cells - 1, pixels, dtype=np.float32)[:, None]
    weights: Map = np.maximum(1 - np.abs(place - np.arange(cells, dtype=np.float32)), 0)
    return weights


def blurred(film: Map, sigma: float) -> Map:
    """Blur by a Gaussian of ``sigma`` pixels; at these sizes two matrix products are faster than a filter."""
    rows, columns = (_gaussian(pixels, sigma) for pixels in film.shape)
    return rows @ film @ columns.T


@lru_cache(maxsize=32)
def _gaussian(pixels: int, sigma: float) -> Map:
    place = np.arange(pixels, dtype=np.float32)
    kernel = bell(place[:, None] - place, math.sqrt(2) * sigma)
    kernel[kernel < 1e-6] = 0
    kernel /= kernel.sum(1, keepdims=True)
    return kernel


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
