"""A frontal chest radiograph as a sum of attenuations: the phantom behind the twins of every chest X-ray dataset.

Tissue attenuates, air does not; lungs are air; findings put fluid or tissue where air was, or move what borders the lungs.
So a finding looks as it does in a patient because of its cause, and findings overlap as they do in patients.

Coordinates: x to the right of the image (the patient's left) and y downwards, both about [−1, 1]; u = |x − midline| counts
from the midline outwards on both sides, so one pass draws both lungs. Grey values are in MONOCHROME2 sense (bone is bright).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy.ndimage import gaussian_filter

Map = Float32[np.ndarray, "row column"]


@dataclass(frozen=True)
class Findings:
    """What is wrong with a chest: severity in [0, 1] by cause; 0 is absent."""

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


@dataclass(frozen=True)
class Anatomy:
    """One patient's chest, and on which side and where findings sit in it."""

    scale: float
    inspiration: float
    build: float
    heart: float
    mediastinum: float
    rib_slope: float
    rib_phase: float
    stomach: float
    side: int
    bilateral: bool
    lobe: int
    pattern: int

    @classmethod
    def draw(cls, rng: np.random.Generator, *, child: bool = False) -> Anatomy:
        """Draw a patient; a child is slimmer, with a relatively larger heart and thymus."""
        return cls(
            scale=float(rng.normal(0.92 if child else 1.0, 0.045)),
            inspiration=float(rng.normal(0.93 if child else 1.0, 0.05)),
            build=float(rng.normal(0.85 if child else 1.0, 0.09)),
            heart=float(rng.normal(1.08 if child else 1.0, 0.05)),
            mediastinum=float(rng.normal(1.15 if child else 1.0, 0.09)),
            rib_slope=float(rng.normal(0.42, 0.06)),
            rib_phase=float(rng.uniform()),
            stomach=float(rng.uniform() < 0.5),
            side=int(rng.choice((-1, 1))),
            bilateral=bool(rng.uniform() < 0.4),
            lobe=int(rng.integers(4)),
            pattern=int(rng.integers(2**31)),
        )


@dataclass(frozen=True)
class Style:
    """One exposure: how the patient stood and what the machine did."""

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


@dataclass(frozen=True)
class Frame:
    """Coordinates and borders of one chest on one pixel grid."""

    x: Map
    y: Map
    u: Map
    left: Bool[np.ndarray, "row column"]
    wall: Map
    floor: Map
    hilum: Map
    angle: Map
    vessels: Map


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
    # a stream of its own per patient, so that the same lungs come out on every film of a patient
    lungs = np.random.default_rng(anatomy.pattern)
    frame = _frame(anatomy, findings, style, shape, lungs)
    cavity = _ramp(frame.wall - frame.u, 0.02) * _ramp(frame.floor - frame.y, 0.015)
    centre = _centre(frame, anatomy, findings)
    air = cavity * (1 - 0.9 * centre)
    opacity = _opacity(frame, anatomy, findings, lungs)
    film = _attenuation(frame, anatomy, air, opacity, centre, findings)
    return _expose(film, frame, style, rng), opacity * air


def _frame(
    anatomy: Anatomy, findings: Findings, style: Style, shape: tuple[int, int], lungs: np.random.Generator
) -> Frame:
    column, row = _grid(shape)
    cos, sin = np.cos(style.tilt), np.sin(style.tilt)
    x = (cos * column + sin * row - style.shift_x) / anatomy.scale
    y = (cos * row - sin * column - style.shift_y) / anatomy.scale
    # collapse pulls the midline towards its side
    x -= np.float32(0.07 * findings.atelectasis * anatomy.side)
    u, left = np.abs(x), x > 0
    wall = 0.74 * (1 - np.clip((0.30 - y) / 1.02, 0, 1) ** 2.3) ** 0.6
    floor = _diaphragm(u, left, anatomy, findings)
    right, down = u - 0.16, y + 0.04
    hilum = np.hypot(right, down)
    angle = np.arctan2(down, right)
    return Frame(x, y, u, left, wall, floor, hilum, angle, _vessels(hilum, angle, left, findings, lungs))


def _diaphragm(u: Map, left: Bool[np.ndarray, "row column"], anatomy: Anatomy, findings: Findings) -> Map:
    """Two domes, the patient's right one higher; they fall off to the costophrenic angles. Collapse lifts one."""
    base = np.float32(0.60 * anatomy.inspiration) + np.where(left, np.float32(0.03), np.float32(-0.03))
    collapsed = left == (anatomy.side > 0)
    base -= np.where(collapsed, np.float32(0.24 * findings.atelectasis), np.float32(0))
    return base - 0.17 * (1 - np.minimum(((u - 0.34) / 0.40) ** 2, 1.3))


def _vessels(
    hilum: Map, angle: Map, left: Bool[np.ndarray, "row column"], findings: Findings, lungs: np.random.Generator
) -> Map:
    """Branches that leave the hilum, twist, divide once and taper; oedema fills them."""
    phase = lungs.uniform(0, 2 * np.pi, (3, 2)).astype(np.float32)
    turn = np.where(left, phase[0, 0], phase[0, 1])
    bend = 0.5 * np.sin(7 * hilum + turn)
    stems = np.maximum(np.cos(7 * (angle + bend) + np.where(left, phase[1, 0], phase[1, 1])), 0)
    twigs = np.maximum(np.cos(15 * (angle - bend) + np.where(left, phase[2, 0], phase[2, 1])), 0)
    near = np.exp(-((hilum / 0.22) ** 2))
    far = np.exp(-((hilum / 0.48) ** 2)) - near
    core = np.exp(-((hilum / 0.075) ** 2))
    branches = stems**2 * stems * stems * near + 0.7 * twigs**2 * twigs * twigs * far + 1.1 * core
    return (1 + 0.8 * findings.oedema) * branches


def _centre(frame: Frame, anatomy: Anatomy, findings: Findings) -> Map:
    """Heart, great vessels and aortic knob: the share of the beam they take, in [0, 1]."""
    size = anatomy.heart * (1 + 0.42 * findings.cardiomegaly)
    dx, dy = frame.x - 0.10 * size, frame.y - 0.27
    along, across = 0.80 * dx + 0.60 * dy, 0.80 * dy - 0.60 * dx
    heart = _ramp(1 - np.hypot(along / (0.36 * size), across / (0.25 * size)), 0.05)
    band = 0.105 * anatomy.mediastinum + 0.02 * frame.left
    knob = 0.055 * np.exp(-(((frame.y + 0.30) / 0.09) ** 2)) * frame.left
    wide = 0.17 * findings.wide_mediastinum * np.exp(-(((frame.y + 0.28) / 0.26) ** 2))
    vena = _ramp(band + knob + wide - frame.u, 0.02)
    return np.maximum(heart, vena)


def _opacity(frame: Frame, anatomy: Anatomy, findings: Findings, lungs: np.random.Generator) -> Map:
    """Share of lung air replaced by each finding, joined as independent layers: 1 − Π(1 − layer)."""
    mottle = _mottle(frame.x.shape, 14, lungs)
    coarse = _mottle(frame.x.shape, 6, lungs)
    spots = lungs.uniform(size=(10, 4))
    clear = np.ones_like(frame.x)
    if findings.ground_glass > 0:
        clear *= 1 - _ground_glass(frame, findings.ground_glass, spots, mottle)
    if findings.consolidation > 0:
        clear *= 1 - _consolidation(frame, anatomy, findings.consolidation, coarse)
    if findings.effusion > 0:
        clear *= 1 - _effusion(frame, anatomy, findings.effusion)
    if findings.atelectasis > 0:
        clear *= 1 - _plates(frame, anatomy, findings.atelectasis, spots)
    if findings.oedema > 0:
        wings = np.exp(-((frame.hilum / 0.36) ** 2))
        clear *= 1 - 0.62 * findings.oedema * wings * (0.75 + 0.5 * mottle)
    return np.clip(1 - clear, 0, 1)


def _ground_glass(frame: Frame, severity: float, spots: Float[np.ndarray, "spot 4"], mottle: Map) -> Map:
    """Hazy patches in both lungs, peripheral, mostly low: COVID-19 pneumonia (Wong et al. 2020)."""
    count = 5 + round(5 * severity)
    haze = np.zeros_like(frame.x)
    for number, (lateral, height, size, weight) in enumerate(spots[:count]):
        row = -0.30 + 0.80 * np.sqrt(height)
        centre = (1 if number % 2 else -1) * (0.34 + 0.26 * lateral)
        radius = 0.11 + 0.10 * size
        haze += (0.6 + 0.4 * weight) * np.exp(-(((frame.x - centre) / radius) ** 2) - ((frame.y - row) / (1.2 * radius)) ** 2)
    return 0.62 * severity * np.minimum(haze, 1) * (0.55 + 0.75 * mottle)


def _consolidation(frame: Frame, anatomy: Anatomy, severity: float, coarse: Map) -> Map:
    """One lobe full of fluid: dense, cut off by its fissure, with air-filled bronchi showing in it."""
    upper = anatomy.lobe % 2 == 0
    row = -0.26 if upper else 0.24
    radius = 0.20 + 0.10 * severity
    same = frame.left == (anatomy.side > 0)
    body = np.exp(-((((frame.u - 0.38) / (1.15 * radius)) ** 2 + ((frame.y - row) / radius) ** 2) ** 1.5))
    fissure = _ramp((-0.02 - frame.y) if upper else (frame.y - 0.02 + 0.25 * (frame.u - 0.4)), 0.025)
    bronchi = 1 - 0.5 * np.minimum(frame.vessels, 1)
    return 0.95 * severity**0.7 * same * body * fissure * bronchi * (0.55 + 0.8 * coarse)


def _effusion(frame: Frame, anatomy: Anatomy, severity: float) -> Map:
    """Fluid in the pleural space: blunts the costophrenic angle first, then climbs the wall as a meniscus."""
    sulcus = 0.68 * anatomy.inspiration
    climb = np.minimum(frame.u / 0.72, 1) ** 3
    surface = sulcus - severity * (0.16 + 0.34 * climb)
    other = 0.7 if anatomy.bilateral else 0.0
    side = np.where(frame.left == (anatomy.side > 0), np.float32(1), np.float32(other))
    return 0.95 * side * _ramp(frame.y - surface, 0.05)


def _plates(frame: Frame, anatomy: Anatomy, severity: float, spots: Float[np.ndarray, "spot 4"]) -> Map:
    """Collapse: one to three plate-like bands above the lifted diaphragm, and crowded, denser lung around them."""
    same = frame.left == (anatomy.side > 0)
    above = frame.floor - frame.y
    bands = np.zeros_like(frame.x)
    for lateral, slope, gap, _ in spots[: 1 + round(2 * severity)]:
        line = above - (0.05 + 0.22 * gap) - 0.5 * (slope - 0.5) * (frame.u - 0.4)
        reach = np.exp(-(((frame.u - 0.30 - 0.2 * lateral) / 0.2) ** 4))
        bands = np.maximum(bands, reach * np.exp(-((line / 0.022) ** 2)))
    crowded = 0.55 * np.exp(-np.maximum(above, 0) / 0.13)
    return severity * same * np.maximum(0.8 * bands, crowded)


def _attenuation(frame: Frame, anatomy: Anatomy, air: Map, opacity: Map, centre: Map, findings: Findings) -> Map:
    """Add up what the beam meets: soft tissue, less the air, plus bones, heart and abdomen."""
    depth = np.clip((frame.wall - frame.u) / 0.30, 0, 1) ** 0.5
    filled = air * depth * (1 - opacity) * (1 - 0.30 * np.minimum(frame.vessels, 1.3))
    thickness = anatomy.build * (0.80 + 0.10 * frame.y)
    total = thickness * (1 - 0.66 * filled)
    total += 0.16 * centre * (1 - air)
    total += 0.13 * _ramp(frame.y - frame.floor, 0.02) * _ramp(0.86 - frame.u, 0.05)
    total += _bones(frame, anatomy)
    trachea = _ramp(0.040 - frame.u, 0.02) * _ramp(-0.22 - frame.y, 0.08)
    bubble = np.exp(-(((frame.x - 0.33) / 0.13) ** 2) - ((frame.y - frame.floor - 0.10) / 0.07) ** 2)
    return total - 0.20 * trachea - 0.30 * anatomy.stomach * bubble


def _bones(frame: Frame, anatomy: Anatomy) -> Map:
    """Spine with its discs, posterior and anterior ribs, clavicles."""
    u, y = frame.u, frame.y
    spine = _ramp(0.075 - u, 0.03) * (0.75 + 0.25 * np.cos(2 * np.pi * y / 0.13))
    cage = _ramp(frame.wall + 0.03 - u, 0.03) * _ramp(u - 0.08, 0.05) * _ramp(0.80 - y, 0.05)
    back = _rib(y + 0.08 * u - anatomy.rib_slope * u * u, anatomy.rib_phase, 0.17)
    front = _rib(y + 0.55 * u, anatomy.rib_phase + 0.4, 0.21)
    drop = y + 0.60 + 0.20 * u - 0.05 * np.sin(5 * u)
    clavicle = np.exp(-((drop / 0.030) ** 2)) * _ramp(u - 0.07, 0.03) * _ramp(0.88 - u, 0.04)
    return 0.16 * spine + cage * (0.085 * back + 0.04 * front) + 0.13 * clavicle


def _rib(height: Map, phase: float, spacing: float) -> Map:
    """Bands of bone at every ``spacing``, brighter along their cortical rims."""
    middle = np.abs((height / np.float32(spacing) + np.float32(phase)) % 1 - np.float32(0.5))
    return _ramp(0.20 - middle, 0.06) * (0.6 + 8 * middle * middle)


def _expose(film: Map, frame: Frame, style: Style, rng: np.random.Generator) -> Map:
    """Cut out the body, blur, expose, add quantum noise and the collimator's edge."""
    shoulders = np.where(frame.u < 0.24, frame.y + 1.5, frame.y + 1.0 - 0.32 * (frame.u - 0.24))
    body = _ramp(shoulders, 0.04) * _ramp(0.97 - frame.u, 0.04)
    film = gaussian_filter(film * body, style.blur * film.shape[0] / 96, truncate=3.0)
    film = np.clip(style.gain * film + style.offset, 0, None) ** np.float32(style.gamma)
    film += (style.noise * rng.standard_normal(film.shape, dtype=np.float32)) * (0.5 + film)
    column, row = _grid(film.shape)
    open_field = (np.abs(row) < style.collimation) & (np.abs(column) < style.collimation * np.abs(column).max())
    return np.clip(film * open_field, 0, 1).astype(np.float32)


def _ramp(distance: Map, softness: float) -> Map:
    """0 outside, 1 inside, linear over ± ``softness`` around the border."""
    return np.clip(0.5 + distance * np.float32(0.5 / softness), 0, 1)


@lru_cache(maxsize=8)
def _grid(shape: tuple[int, int]) -> tuple[Map, Map]:
    """Return pixel centres: x spans [−columns/rows, columns/rows], y spans [−1, 1]."""
    rows, columns = shape
    row = (np.arange(rows, dtype=np.float32) * 2 + 1) / rows - 1
    column = ((np.arange(columns, dtype=np.float32) * 2 + 1) / columns - 1) * (columns / rows)
    x, y = np.meshgrid(column, row)
    return x.astype(np.float32), y.astype(np.float32)


def _mottle(shape: tuple[int, ...], cells: int, lungs: np.random.Generator) -> Map:
    """Smooth random texture in [0, 1] of about ``cells`` patches per side."""
    rows, columns = (_spline(pixels, cells) for pixels in shape)
    return (rows @ lungs.uniform(size=(cells, cells)).astype(np.float32) @ columns.T).astype(np.float32)


@lru_cache(maxsize=16)
def _spline(pixels: int, cells: int) -> Float32[np.ndarray, "pixel cell"]:
    """Linear interpolation from ``cells`` knots to ``pixels`` points, as a matrix."""
    place = np.linspace(0, cells - 1, pixels, dtype=np.float32)[:, None]
    return np.maximum(1 - np.abs(place - np.arange(cells, dtype=np.float32)), 0)
