"""What the simulated ICU measures: 48 variables from organ burdens, coupled as physiology couples them.

Pressures share one cardiac output (the mean lies between systole and diastole), pH follows from bicarbonate and pCO2
(Henderson and Hasselbalch), saturation from pO2 (Severinghaus 1979), pO2 from the inspired oxygen that treatment raises
when the lung fails. Medians and spreads follow the public demo tables of two ICU databases.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from medfed.datasets.twins.icu_stays import BURDENS

PERSISTENCE = 0.6
"""Correlation of measurement noise between neighbouring hours."""

Hourly = Float64[np.ndarray, "stay hour"]


class Variable(NamedTuple):
    """A variable that burdens move directly.

    Attributes:
        median: at no burden, in the table's units.
        between: spread between patients; of the logarithm where ``log``.
        within: spread between measurements of one patient, likewise.
        effects: change per unit of each burden (inflammation, shock, lung, kidney, liver, heart), likewise.
        low: lowest value the table holds.
        high: highest.
        decimals: the laboratory's rounding.
        log: positive and skewed.
    """

    median: float
    between: float
    within: float
    effects: tuple[float, ...]
    low: float
    high: float
    decimals: int
    log: bool = False


# fmt: off
VARIABLES: dict[str, Variable] = {
    "hr":       Variable(79, 13, 6, (7, 8, 2, 0, 0, 2), 25, 220, 1),
    "resp":     Variable(17, 3.2, 2.6, (1.6, 1, 3, 0.3, 0, 0), 4, 60, 1),
    "temp":     Variable(36.62, 0.38, 0.33, (0.5, -0.15, 0, -0.05, 0, 0), 32, 42, 2),
    "alb":      Variable(3.15, 0.5, 0.15, (-0.3, -0.05, 0, -0.05, -0.3, 0), 0.8, 5.5, 1),
    "alp":      Variable(76, 0.4, 0.1, (0.05, 0, 0, 0, 0.4, 0), 10, 2000, 0, True),
    "alt":      Variable(20, 0.85, 0.2, (0, 0.5, 0, 0, 1.1, 0.2), 3, 12000, 0, True),
    "ast":      Variable(23, 0.85, 0.2, (0, 0.55, 0, 0, 1.1, 0.35), 5, 15000, 0, True),
    "bicar":    Variable(25, 3.3, 1.3, (-0.4, -2.4, 0.8, -1.5, -0.3, 0), 4, 50, 0),
    "bili":     Variable(0.55, 0.55, 0.12, (0.1, 0.1, 0, 0, 0.9, 0), 0.1, 50, 1, True),
    "bili_dir": Variable(0.3, 0.7, 0.15, (0.1, 0.1, 0, 0, 0.9, 0), 0.1, 30, 1, True),
    "bnd":      Variable(5, 0.8, 0.3, (0.5, 0.1, 0, 0, 0, 0), 0, 70, 0, True),
    "bun":      Variable(16, 0.5, 0.07, (0.05, 0.12, 0, 0.6, 0.05, 0.05), 2, 200, 0, True),
    "ca":       Variable(8.4, 0.55, 0.22, (-0.15, -0.1, 0, -0.1, 0, 0), 5, 13, 1),
    "cai":      Variable(1.15, 0.06, 0.03, (-0.02, -0.02, 0, -0.02, 0, 0), 0.6, 1.7, 2),
    "ck":       Variable(130, 1.1, 0.3, (0, 0.2, 0, 0.1, 0, 0.6), 10, 50000, 0, True),
    "ckmb":     Variable(3.6, 0.8, 0.3, (0, 0.1, 0, 0, 0, 0.9), 0.3, 500, 1, True),
    "cl":       Variable(104.5, 4.8, 1.5, (0.3, 0.4, -0.8, 0.2, -0.8, 0), 75, 135, 0),
    "crea":     Variable(0.82, 0.42, 0.07, (0, 0.1, 0, 0.7, 0, 0.02), 0.2, 20, 2, True),
    "crp":      Variable(45, 0.8, 0.15, (0.6, 0, 0, 0, 0, 0), 0.5, 600, 1, True),
    "fgn":      Variable(270, 0.38, 0.1, (0.18, -0.15, 0, 0, -0.3, 0), 40, 1200, 0, True),
    "glu":      Variable(130, 0.24, 0.2, (0.05, 0.08, 0, 0.02, -0.05, 0), 30, 900, 0, True),
    "hgb":      Variable(10.9, 1.9, 0.4, (-0.3, -0.15, 0, -0.4, -0.3, 0), 4, 19, 1),
    "inr_pt":   Variable(1.22, 0.18, 0.05, (0.04, 0.08, 0, 0, 0.28, 0.03), 0.8, 15, 1, True),
    "k":        Variable(3.9, 0.5, 0.3, (0, 0.1, 0, 0.35, 0, 0), 2, 8.5, 1),
    "lact":     Variable(1.15, 0.38, 0.15, (0.08, 0.75, 0.03, 0, 0.15, 0), 0.3, 25, 1, True),
    "lymph":    Variable(10.5, 0.5, 0.2, (-0.25, -0.12, 0, 0, 0, 0), 0.5, 70, 0, True),
    "mch":      Variable(30, 2.2, 0.25, (0,) * 6, 18, 40, 1),
    "mchc":     Variable(33.1, 1.2, 0.35, (0,) * 6, 26, 38, 1),
    "mcv":      Variable(90.5, 6, 0.6, (0, 0, 0, 0, 1.5, 0), 60, 120, 0),
    "methb":    Variable(0.4, 0.5, 0.25, (0,) * 6, 0, 5, 1, True),
    "mg":       Variable(1.95, 0.28, 0.17, (0, 0, 0, 0.12, -0.05, 0), 0.8, 5, 1),
    "na":       Variable(139.2, 4.8, 1.4, (0.1, 0.2, 0, -0.4, -1.2, -0.2), 110, 170, 0),
    "neut":     Variable(77.5, 9, 3.5, (3.5, 1.5, 0, 0, 0, 0.5), 2, 98, 0),
    "pco2":     Variable(38, 0.17, 0.09, (-0.02, -0.02, 0.13, -0.02, -0.01, 0), 15, 130, 0, True),
    "phos":     Variable(3.0, 0.28, 0.14, (-0.03, 0.08, 0, 0.22, 0, 0), 0.5, 14, 1, True),
    "plt":      Variable(210, 0.43, 0.06, (-0.06, -0.12, 0, -0.03, -0.4, 0), 5, 1200, 0, True),
    "ptt":      Variable(31, 0.3, 0.17, (0.02, 0.1, 0, 0, 0.18, 0.1), 18, 200, 1, True),
    "tnt":      Variable(0.045, 0.9, 0.25, (0, 0.2, 0, 0.3, 0, 1.0), 0.01, 25, 2, True),
    "urine":    Variable(82, 0.6, 0.65, (0, -0.4, 0, -0.6, 0, -0.05), 0, 3000, 0, True),
    "wbc":      Variable(9.0, 0.42, 0.1, (0.28, 0.08, 0, 0, 0, 0.03), 0.3, 80, 1, True),
}
# fmt: on


RANGES: dict[str, tuple[float, float, int]] = {
    "sbp": (40, 250, 1),
    "dbp": (20, 150, 1),
    "map": (28, 190, 1),
    "fio2": (21, 100, 0),
    "po2": (30, 500, 0),
    "o2sat": (60, 100, 1),
    "ph": (6.8, 7.7, 2),
    "be": (-25, 25, 0),
    **{name: (variable.low, variable.high, variable.decimals) for name, variable in VARIABLES.items()},
}
"""Lowest and highest value and decimals of every variable; first those that follow from others."""


def measure(burden: Float64[np.ndarray, "stay hour burden"], rng: np.random.Generator) -> dict[str, Hourly]:
    """Return what each of the 48 variables would read at every hour, measured or not."""
    values = {name: _direct(variable, burden, rng) for name, variable in VARIABLES.items()}
    values |= _pressures(burden, rng)
    values["pco2"] = values["pco2"] + 0.7 * (values["bicar"] - 24)  # breathing compensates the metabolism
    values |= _gases(burden, values["bicar"], values["pco2"], rng)
    values["temp"] = ((values["temp"] * 1.8 + 32).round(1) - 32) / 1.8  # charted in Fahrenheit
    readings = {}
    for name, value in values.items():
        low, high, decimals = RANGES[name]
        readings[name] = np.clip(value, low, high).round(decimals)
    return readings


def _direct(variable: Variable, burden: Float64[np.ndarray, "stay hour burden"], rng: np.random.Generator) -> Hourly:
    stays, hours, _ = burden.shape
    centre = np.log(variable.median) if variable.log else variable.median
    person = variable.between * rng.standard_normal((stays, 1))
    reading = variable.within * _readings((stays, hours), rng)
    value: Hourly = centre + person + burden @ np.array(variable.effects) + reading
    return np.exp(value) if variable.log else value


def _pressures(burden: Float64[np.ndarray, "stay hour burden"], rng: np.random.Generator) -> dict[str, Hourly]:
    stays, hours, _ = burden.shape
    inflammation, shock, _, kidney, _, _ = (burden[..., index] for index in range(len(BURDENS)))
    mean = 85 + 11 * rng.standard_normal((stays, 1)) - 9 * shock - 3 * inflammation + 2 * kidney
    mean = mean + 7 * _readings((stays, hours), rng)
    pulse = np.maximum(56 + 15 * rng.standard_normal((stays, 1)) - 4 * shock + 6 * _readings((stays, hours), rng), 12)
    cuff = 1.5 * rng.standard_normal((stays, hours))
    return {"sbp": mean + 2 / 3 * pulse, "dbp": mean - pulse / 3, "map": mean + cuff}


def _gases(
    burden: Float64[np.ndarray, "stay hour burden"], bicarbonate: Hourly, pco2: Hourly, rng: np.random.Generator
) -> dict[str, Hourly]:
    stays, hours, _ = burden.shape
    lung = burden[..., BURDENS.index("lung")]
    ratio = 320 * np.exp(0.28 * rng.standard_normal((stays, 1)) - 0.45 * lung)  # pO2 per inspired fraction
    generosity = rng.lognormal(0, 0.22, (stays, 1))  # how much oxygen this team gives
    fraction = np.clip(generosity * 90 / ratio, 0.21, 1.0)
    fraction = np.ceil(fraction * 20) / 20
    po2 = ratio * fraction * np.exp(0.33 * _readings((stays, hours), rng))
    arterial = ratio * fraction * np.exp(0.08 * _readings((stays, hours), rng))
    ph = 6.1 + np.log10(bicarbonate.clip(4) / (0.0307 * pco2.clip(15)))
    excess = 0.93 * (bicarbonate - 24.4 + 14.8 * (ph - 7.4))
    saturation = 100 / (23400 / (arterial**3 + 150 * arterial) + 1) + 1.2 * _readings((stays, hours), rng)
    return {"fio2": 100 * fraction, "po2": po2, "o2sat": saturation, "ph": ph, "be": excess}


def _readings(shape: tuple[int, int], rng: np.random.Generator) -> Hourly:
    """Unit noise whose neighbouring hours resemble each other (first-order autoregression)."""
    from scipy.signal import lfilter  # noqa: PLC0415 (large; loaded where it is used)

    stays, hours = shape
    settled = 8
    white = rng.standard_normal((stays, hours + settled))
    noise: Hourly = lfilter([np.sqrt(1 - PERSISTENCE**2)], [1, -PERSISTENCE], white, axis=1)[:, settled:]
    return noise
