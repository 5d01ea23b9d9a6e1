"""One simulated heart beat: a moving 3-D dipole made of Gaussian waves, seen by twelve leads.

The dipole follows McSharry et al. 2003 and Sameni et al. 2007 (sums of Gaussians per wave). Axes are Frank's, in
millivolts: x to the left, y to the feet, z to the back. Leads I, II and V1 to V6 are its projections by Dower et al.
1980. The other four follow from Einthoven and Goldberger, so all twelve agree with each other. A finding changes waves
linearly in its severity. It turns the dipole towards or away from a territory, and the opposite leads have the
reciprocal change by themselves.

The rhythm of the beats is sinus rhythm with its variability, atrial fibrillation, ectopic beats and pauses.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from medfed.modalities.signal import RAW_HZ

WAVES = ("P", "Q", "R", "S", "R'", "ST", "T")
P, Q, R, S, R2, ST, T = range(len(WAVES))
_DOWER = np.array(  # I, II, V1 … V6 from x, y, z
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)

_I, _II = _DOWER[:2]
LEADS_OF_DIPOLE: Float64[np.ndarray, "12 3"] = np.vstack(
    [_I, _II, _II - _I, -(_I + _II) / 2, _I - _II / 2, _II - _I / 2, _DOWER[2:]]
)


class Template(NamedTuple):
    """The waves of a beat.

    Attributes:
        delay: seconds from the R peak.
        width: standard deviation, seconds.
        dipole: millivolts at the wave's peak.
    """

    delay: Float64[np.ndarray, " wave"]
    width: Float64[np.ndarray, " wave"]
    dipole: Float64[np.ndarray, "wave 3"]


class Change(NamedTuple):
    """Effect of a finding of severity 1 on a wave.

    Attributes:
        wave: index into :data:`WAVES`.
        scale: factor of the dipole.
        shift: added to the dipole, millivolts.
        stretch: factor of the width.
        delay: added to the delay, seconds.
    """

    wave: int
    scale: float = 1.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    stretch: float = 1.0
    delay: float = 0.0


FINDINGS: dict[str, tuple[Change, ...]] = {
    "NDT": (Change(T, 0.1, (-0.02, -0.03, 0.03)),),
    "NST_": (Change(ST, 1, (-0.06, -0.07, 0.03)), Change(T, 0.4)),
    "ISCAL": (Change(ST, 1, (-0.14, -0.06, 0.09)), Change(T, 1, (-0.45, -0.2, 0.2))),
    "ISCIN": (Change(ST, 1, (0.0, -0.15, 0.03)), Change(T, 1, (0.0, -0.42, 0.0))),
    "LNGQT": (Change(T, 1.1, stretch=1.25, delay=0.1), Change(ST, delay=0.04)),
    "IMI": (
        Change(Q, 1, (0.02, -0.5, 0.0), stretch=1.6, delay=-0.008),
        Change(R, 1, (0.0, -0.25, 0.0)),
        Change(T, 1, (0.02, -0.42, 0.0)),
    ),
    "ASMI": (
        Change(Q, 1, (0.15, 0.0, 0.5), stretch=1.5, delay=-0.004),
        Change(ST, 1, (0.0, 0.0, -0.08)),
        Change(T, 1, (-0.05, 0.0, 0.36)),
    ),
    "ALMI": (
        Change(Q, 1, (-0.4, 0.05, 0.35), stretch=1.6, delay=-0.006),
        Change(R, 1, (-0.35, 0.0, 0.1)),
        Change(T, 1, (-0.5, -0.05, 0.2)),
    ),
    "INJAS": (Change(ST, 1, (0.1, 0.0, -0.28), stretch=1.3), Change(T, 1, (0.1, 0.0, -0.25))),
    "INJIN": (Change(ST, 1, (-0.08, 0.3, 0.05), stretch=1.3), Change(T, 1, (-0.05, 0.2, 0.0))),
    "LVH": (
        Change(R, 1.75, stretch=1.15),
        Change(S, 1.8, stretch=1.1),
        Change(ST, 1, (-0.1, -0.04, 0.08)),
        Change(T, 1, (-0.42, -0.22, 0.1)),
    ),
    "CLBBB": (
        Change(Q, 0.0),
        Change(R, 1, (0.0, -0.3, 0.45), stretch=2.1, delay=0.01),
        Change(S, 0.2, (0.65, 0.05, 0.35), stretch=2.0, delay=0.04),
        Change(ST, 1, (-0.12, -0.03, -0.2), stretch=1.2),
        Change(T, 1, (-0.55, -0.25, -0.3), stretch=1.2, delay=0.04),
    ),
    "CRBBB": (
        Change(S, 0.4),
        Change(R2, 1, (-0.6, -0.05, -0.75), stretch=1.2, delay=0.01),
        Change(T, 1, (0.08, 0.0, 0.3), delay=0.02),
    ),
    "IRBBB": (Change(S, 0.7), Change(R2, 1, (-0.22, 0.0, -0.42), stretch=0.8)),
    "LAFB": (Change(Q, 1, (0.0, 0.2, 0.0)), Change(R, 1, (0.1, -0.95, 0.0)), Change(S, 1, (0.0, -0.4, 0.0))),
    "1AVB": (Change(P, delay=-0.12),),
}


def healthy(rng: np.random.Generator) -> Template:
    """Draw a healthy heart: axis, voltage and repolarisation differ between people."""
    delay = np.array([-0.16, -0.032, 0.0, 0.03, 0.055, 0.13, 0.27])
    delay[P] -= rng.normal(0, 0.012)
    width = np.array([0.022, 0.010, 0.0125, 0.0115, 0.018, 0.04, 0.048]) * rng.lognormal(0, 0.06, len(WAVES))
    dipole = np.array(
        [
            [0.07, 0.10, -0.03],
            [-0.12, -0.02, -0.2],
            [0.95, 0.85, 0.4],
            [-0.22, -0.12, 0.9],
            [0.0, 0.0, 0.0],
            [0.01, 0.01, -0.03],
            [0.27, 0.2, -0.26],
        ]
    ) * rng.lognormal(0, 0.12, (len(WAVES), 1))
    dipole[Q : R2 + 1] *= rng.lognormal(0, 0.2)
    dipole[T] *= rng.lognormal(0, 0.3)
    turned = dipole @ _rotation(rng.normal(0, 0.36), rng.normal(0, 0.25)).T
    turned[T] += rng.normal(0, 0.04, 3)
    turned[ST] += rng.normal(0, 0.015, 3)
    return Template(delay, width, turned)


def with_findings(template: Template, findings: Iterable[tuple[str, float]]) -> Template:
    """Apply findings of :data:`FINDINGS`, each with its severity."""
    delay, width, dipole = (part.copy() for part in template)
    for code, severity in findings:
        for change in FINDINGS[code]:
            dipole[change.wave] *= 1 + severity * (change.scale - 1)
            dipole[change.wave] += severity * np.array(change.shift)
            width[change.wave] *= 1 + severity * (change.stretch - 1)
            delay[change.wave] += severity * change.delay
    return Template(delay, width, dipole)


def ventricular(template: Template, rng: np.random.Generator, strength: float) -> Template:
    """A premature ventricular beat: no P, a broad QRS from one focus, ST and T against it.

    Below ``strength`` 1 it is a fusion beat, a mixture with the normal one.
    """
    size = rng.uniform(0.7, 1.2)
    main = size * np.array([rng.choice([-0.8, 0.8]), rng.choice([-0.9, 0.7]), rng.choice([-0.8, 0.9])])
    dipole = np.array([[0, 0, 0], 0.1 * main, main, 0.75 * main, 0.2 * main, -0.15 * main, -0.42 * main])
    delay = np.array([-0.16, -0.06, 0.0, 0.055, 0.1, 0.17, 0.32])
    width = np.array([0.022, 0.02, 0.030, 0.032, 0.02, 0.05, 0.065])
    ectopic = Template(delay, width, dipole)
    return Template(*(strength * new + (1 - strength) * old for new, old in zip(ectopic, template, strict=True)))


def supraventricular(template: Template, rng: np.random.Generator, strength: float) -> Template:
    """A premature atrial beat: another P axis, a shorter PR, and a right bundle that has not quite recovered."""
    delay, width, dipole = (part.copy() for part in template)
    dipole[P] *= 1 - strength * rng.uniform(0.8, 1.8)
    delay[P] += strength * 0.03
    return with_findings(Template(delay, width, dipole), [("CRBBB", strength * float(rng.uniform(0.0, 0.4)))])


def render(beats: Iterable[tuple[float, float, Template]], num_samples: int) -> Float64[np.ndarray, "3 time"]:
    """Draw beats, each (R peak in seconds, seconds since the beat before, template), as a dipole over time."""
    before, after, pad = 45, 85, 150  # samples around the R peak, and around the recording
    seen = [beat for beat in beats if -1 < beat[0] < num_samples / RAW_HZ + 0.5]
    delay = np.stack([template.delay for _, _, template in seen])
    width = np.stack([template.width for _, _, template in seen])
    stretch = np.sqrt(np.clip([interval for _, interval, _ in seen], 0.4, 1.5) / np.float64(0.85))
    delay[:, ST:] *= stretch[:, None]  # QT follows the rate (Bazett)
    width[:, T] *= stretch
    centre = np.array([peak * RAW_HZ for peak, _, _ in seen])
    start = np.floor(centre).astype(int)
    time = (np.arange(-before, after) - (centre - start)[:, None]) / RAW_HZ
    waves = np.exp(-0.5 * ((time[:, None, :] - delay[..., None]) / width[..., None]) ** 2)
    shapes = np.einsum("bwt,bwx->bxt", waves, np.stack([template.dipole for _, _, template in seen]))
    dipole = np.zeros((3, num_samples + 2 * pad))
    for shape, first in zip(shapes, (start + pad - before).tolist(), strict=True):
        dipole[:, first : first + before + after] += shape
    return dipole[:, pad : pad + num_samples]


def axis_degrees(template: Template) -> float:
    """Electrical axis of QRS in the frontal plane; 0 is lead I, 90 is aVF."""
    area = (template.dipole[Q : R2 + 1] * template.width[Q : R2 + 1, None]).sum(0)
    lead_i, lead_avf = (LEADS_OF_DIPOLE[[0, 5]] @ area).tolist()
    return float(np.degrees(np.arctan2(lead_avf * 2 / np.sqrt(3), lead_i)))


def _rotation(frontal: float, horizontal: float) -> Float64[np.ndarray, "3 3"]:
    """Turn by ``frontal`` radians about the z axis, then ``horizontal`` about the y axis."""
    c, s = np.cos(frontal), np.sin(frontal)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    c, s = np.cos(horizontal), np.sin(horizontal)
    rotation: np.ndarray = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ turn
    return rotation


Origin = Literal["ventricular", "supraventricular"]
Beat = tuple[float, float, Template]
"""R peak in seconds, seconds since the beat before, waves."""


class Rhythm(NamedTuple):
    """A rhythm's settings.

    Attributes:
        rate: beats per minute.
        respiratory: respiratory sinus arrhythmia, share of the RR interval.
        fibrillation: 0 sinus rhythm … 1 atrial fibrillation: irregular, no P, fibrillatory waves.
        ectopics: origin of each ectopic beat.
        prematurity: 0 on time … 1 as early as ectopic beats are.
    """

    rate: float
    respiratory: float
    fibrillation: float
    ectopics: tuple[Origin, ...]
    prematurity: float


def beats(rhythm: Rhythm, template: Template, seconds: int, rng: np.random.Generator) -> list[Beat]:
    """Return the beats of a recording, a little beyond both ends."""
    peaks = _peaks(rhythm, seconds, rng)
    dipole = template.dipole.copy()
    dipole[P] *= 1 - rhythm.fibrillation
    templates = [template._replace(dipole=dipole)] * len(peaks)
    inside = np.flatnonzero((peaks > 1.0) & (peaks < seconds - 0.6))
    chosen = rng.permutation(inside[::2])[: len(rhythm.ectopics)]  # never two in a row: each has its pause
    focus = ventricular(templates[0], rng, rhythm.prematurity)  # all from one place, so they look alike
    for position, origin in zip(chosen.tolist(), rhythm.ectopics, strict=False):
        interval = peaks[position] - peaks[position - 1]
        early = interval * rng.uniform(0.24, 0.44) * rhythm.prematurity
        if origin == "ventricular":
            peaks[position] -= early  # the sinus node goes on: a full compensatory pause
            templates[position] = focus
        else:
            peaks[position] -= early
            peaks[position + 1 :] -= early * 0.7  # the sinus node is reset: an incomplete pause
            templates[position] = supraventricular(templates[position], rng, rhythm.prematurity)
    intervals = np.diff(peaks, prepend=2 * peaks[0] - peaks[1])
    return list(zip(peaks.tolist(), intervals.tolist(), templates, strict=True))


def fibrillatory_waves(rhythm: Rhythm, num_samples: int, rng: np.random.Generator) -> Float64[np.ndarray, "3 time"]:
    """Irregular 5–8 Hz waves of the atria, largest towards V1."""
    if rhythm.fibrillation == 0:
        return np.zeros((3, num_samples))
    steps = 2 * np.pi * (rng.uniform(5, 8) + np.cumsum(rng.normal(0, 0.25, num_samples))) / RAW_HZ
    size = (
        rhythm.fibrillation
        * rng.uniform(0.03, 0.09)
        * (1 + 0.4 * np.sin(2 * np.pi * 0.7 * np.arange(num_samples) / RAW_HZ))
    )
    return np.outer([-0.5, 0.35, -0.7], size * np.sin(np.cumsum(steps)))


def _peaks(rhythm: Rhythm, seconds: int, rng: np.random.Generator) -> Float64[np.ndarray, " beat"]:
    mean = 60 / rhythm.rate
    count = int((seconds + 6) / mean * 1.4) + 4
    slow = np.convolve(rng.normal(0, 0.02, count + 4), np.ones(5) / np.sqrt(5), "valid")
    breath = np.sin(2 * np.pi * rng.uniform(0.18, 0.3) * mean * np.arange(count) + rng.uniform(0, 2 * np.pi))
    irregular = rng.lognormal(0, 0.24, count)
    sinus = 1 + slow + rhythm.respiratory * breath
    intervals = mean * (rhythm.fibrillation * irregular + (1 - rhythm.fibrillation) * sinus)
    peaks = np.cumsum(np.maximum(intervals, 0.3)) - rng.uniform(1, 1 + mean)
    return peaks[peaks < seconds + 3]  # an ectopic beat may pull later ones forward
