"""A simulated intensive-care unit: its patients, their physiology, and the measurements that are taken.

Patients have diagnoses and the hourly course of six organ burdens, from 0 (none) to about 3 (failing). Sepsis is
inflammation that rises from about eight hours before its onset and drags perfusion, lung and kidney with it. Death
follows from burdens, age and chance: the two outcomes share causes. A septic stay's series in the sepsis cohort ends
six hours after the onset, as in YAIB. Every stay first draws its length from the same law, and the onset is counted
back from it. So a series' length says nothing about its label.

Burdens give 48 variables, coupled as physiology couples them. Pressures share one cardiac output, with the mean between
systole and diastole. Bicarbonate and pCO2 give pH (Henderson and Hasselbalch), pO2 gives saturation (Severinghaus
1979). The inspired oxygen that treatment raises when the lung fails gives pO2. Medians and spreads follow the public
demo tables of two ICU databases.

Vital signs have gaps, and laboratory panels are ordered together. The sicker the patient, the more often blood is
drawn, and a test for an organ is ordered when that organ fails. So the choice of measurements is informative, as in the
real tables, whose observed shares per variable and database this follows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int

DATABASES = ("eicu_twin", "mimic_twin")


class Panel(NamedTuple):
    """Variables measured together.

    Attributes:
        variables: their names.
        share: share of stays in which it is measured at all, per database.
        rate: times per hour in such a stay, per database.
        organ: burden that makes it likelier, or None.
    """

    variables: tuple[str, ...]
    share: tuple[float, float]
    rate: tuple[float, float]
    organ: int | None = None


BURDENS = ("inflammation", "shock", "lung", "kidney", "liver", "heart")
INFLAMMATION, SHOCK, LUNG, KIDNEY, LIVER, HEART = range(len(BURDENS))
PANELS = (
    Panel(("temp",), (0.96, 0.96), (0.29, 0.29)),
    Panel(("bicar", "bun", "cl", "crea", "k", "na", "glu", "ca"), (0.93, 0.99), (0.067, 0.085)),
    Panel(("glu",), (0.6, 0.4), (0.2, 0.06)),
    Panel(("k",), (0.15, 0.1), (0.07, 0.06)),
    Panel(("hgb", "mch", "mchc", "mcv", "plt", "wbc"), (0.89, 0.99), (0.057, 0.075)),
    Panel(("lymph", "neut"), (0.58, 0.44), (0.052, 0.045), INFLAMMATION),
    Panel(("bnd",), (0.09, 0.17), (0.045, 0.05), INFLAMMATION),
    Panel(("alb", "alp", "alt", "ast", "bili"), (0.47, 0.36), (0.048, 0.052), LIVER),
    Panel(("bili_dir",), (0.07, 0.08), (0.045, 0.04), LIVER),
    Panel(("be", "pco2", "ph", "po2"), (0.36, 0.61), (0.085, 0.14), LUNG),
    Panel(("lact",), (0.27, 0.48), (0.075, 0.1), SHOCK),
    Panel(("methb",), (0.1, 0.01), (0.09, 0.06), LUNG),
    Panel(("cai",), (0.03, 0.31), (0.1, 0.11), SHOCK),
    Panel(("inr_pt",), (0.35, 0.87), (0.055, 0.08), LIVER),
    Panel(("ptt",), (0.23, 0.87), (0.065, 0.084)),
    Panel(("fgn",), (0.05, 0.11), (0.06, 0.07), LIVER),
    Panel(("mg",), (0.56, 0.97), (0.06, 0.087)),
    Panel(("phos",), (0.33, 0.94), (0.06, 0.078)),
    Panel(("ck",), (0.15, 0.46), (0.073, 0.065), HEART),
    Panel(("ckmb",), (0.1, 0.28), (0.08, 0.07), HEART),
    Panel(("tnt",), (0.06, 0.34), (0.08, 0.062), HEART),
    Panel(("crp",), (0.04, 0.02), (0.05, 0.04), INFLAMMATION),
    Panel(("fio2",), (0.49, 0.48), (0.24, 0.22), LUNG),
    Panel(("urine",), (0.72, 0.94), (0.27, 0.65)),
)

MONITORED = {  # share of stays, share of hours, per database
    ("hr",): ((0.98, 0.96), (0.965, 0.92)),
    ("resp",): ((0.89, 0.96), (0.945, 0.91)),
    ("sbp", "dbp", "map"): ((0.97, 0.96), (0.91, 0.905)),
    ("o2sat",): ((0.98, 0.96), (0.915, 0.89)),
}

HOURS_COLLECTED = (2.2, 0.9)
"""Hours of urine in one entry, per database."""


def observed(
    database: Int[np.ndarray, " stay"],
    burden: Float64[np.ndarray, "stay hour burden"],
    rng: np.random.Generator,
) -> dict[str, Bool[np.ndarray, "stay hour"]]:
    """Return variable → whether each hour has a measurement; ``database`` is 0 or 1 per stay."""
    stays, hours, _ = burden.shape
    seen: dict[str, Bool[np.ndarray, "stay hour"]] = {}
    for variables, (share, coverage) in MONITORED.items():
        connected = rng.random((stays, 1)) < np.take(share, database)[:, None]
        seen |= dict.fromkeys(
            variables, connected & (rng.random((stays, hours)) < np.take(coverage, database)[:, None])
        )
    severity = burden.mean(2) / 0.35  # about 1 on average
    for panel in PANELS:
        drawn = _drawn(panel, database, burden, severity, rng)
        for variable in panel.variables:
            seen[variable] = seen[variable] | drawn if variable in seen else drawn
    return seen


def _drawn(
    panel: Panel,
    database: Int[np.ndarray, " stay"],
    burden: Float64[np.ndarray, "stay hour burden"],
    severity: Float64[np.ndarray, "stay hour"],
    rng: np.random.Generator,
) -> Bool[np.ndarray, "stay hour"]:
    """Draws at near-regular intervals: one whenever the accumulated rate passes a whole number."""
    stays, hours = severity.shape
    odds = np.log(np.take(panel.share, database) / (1 - np.take(panel.share, database)))
    if panel.organ is not None:
        odds = odds + 0.7 * (burden[:, :24, panel.organ].mean(1) - 0.45)
    ordered = rng.random(stays) < 1 / (1 + np.exp(-odds - 0.3 * (severity[:, :24].mean(1) - 1)))
    pace = rng.lognormal(-0.1, 0.4, (stays, hours)) * (0.7 + 0.3 * severity)
    pace[:, 0] *= 3  # bloods on admission
    passed = np.floor(np.cumsum(np.take(panel.rate, database)[:, None] * pace, axis=1) + rng.random((stays, 1)))
    drawn: np.ndarray = (np.diff(passed, axis=1, prepend=0) > 0) & ordered[:, None]
    return drawn


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


NUM_HOURS = 73
"""Longest series, hours 0 to 72."""
HOURS_AFTER_ONSET = 6
DIAGNOSES = {  # share, and burdens at admission
    "infection": (0.28, (0.6, 0.1, 0.2, 0.1, 0.0, 0.0)),
    "cardiac": (0.24, (0.1, 0.3, 0.2, 0.1, 0.0, 1.0)),
    "respiratory": (0.18, (0.25, 0.0, 1.0, 0.0, 0.0, 0.0)),
    "renal": (0.10, (0.1, 0.1, 0.1, 1.2, 0.0, 0.0)),
    "hepatic": (0.06, (0.2, 0.2, 0.1, 0.3, 1.4, 0.0)),
    "surgical": (0.14, (0.6, 0.1, 0.1, 0.0, 0.1, 0.0)),
}

SHARE_SEPTIC = (0.55, 0.06, 0.16, 0.1, 0.12, 0.08)
"""Share of stays with sepsis, by diagnosis."""
RISK = np.array([0.2, 0.7, 0.55, 0.35, 0.35, 0.3])
"""Weight of each burden in the risk of death."""
RISK_MEAN, RISK_SPREAD, DEATH_ABOVE = 0.94, 0.61, 0.94
"""Mean and spread of the risk over stays, and the standard score above which a patient dies: about one in six."""


class Stays(NamedTuple):
    """A block of stays.

    Attributes:
        age: years.
        female: sex.
        burden: organ burdens at every hour.
        septic: sepsis at some hour.
        died: death in the ICU.
        num_hours: rows of the stay in the sepsis cohort.
    """

    age: Float64[np.ndarray, " stay"]
    female: Bool[np.ndarray, " stay"]
    burden: Float64[np.ndarray, "stay hour burden"]
    septic: Bool[np.ndarray, " stay"]
    died: Bool[np.ndarray, " stay"]
    num_hours: Int[np.ndarray, " stay"]


def draw_stays(count: int, short: bool, difficulty: float, rng: np.random.Generator) -> Stays:
    """Draw ``count`` stays; ``short`` ones end within 24 hours and cannot be in the mortality cohort."""
    diagnosis = rng.choice(len(DIAGNOSES), count, p=[share for share, _ in DIAGNOSES.values()])
    age = np.clip(rng.normal(64, 15, count), 18, 90)
    num_hours = rng.integers(7, 25, count) if short else 25 + np.minimum(rng.exponential(11, count), 48).astype(int)
    septic = rng.random(count) < np.array(SHARE_SEPTIC)[diagnosis]
    burden = _course(diagnosis, rng)
    _add_sepsis(burden, septic, num_hours - 1 - HOURS_AFTER_ONSET, rng)
    burden = np.clip(burden, 0, 3.5)
    risk = burden[:, 12:30].mean(1) @ RISK + 0.15 * (age - 64) / 15
    score = (risk - RISK_MEAN) / RISK_SPREAD
    weight = np.sqrt(1 - difficulty**3)
    died = weight * score + np.sqrt(1 - weight**2) * rng.standard_normal(count) > DEATH_ABOVE
    return Stays(age, rng.random(count) < 0.43, burden, septic, died, num_hours)


def _course(diagnosis: Int[np.ndarray, " stay"], rng: np.random.Generator) -> Float64[np.ndarray, "stay hour burden"]:
    """Admission burden, a trend to better or worse, and hourly ups and downs that fade within half a day."""
    count, num_burdens = len(diagnosis), len(BURDENS)
    admission = np.array([burdens for _, burdens in DIAGNOSES.values()])[diagnosis]
    severity = rng.lognormal(-0.1, 0.65, (count, 1))
    start = severity * admission + rng.normal(0.05, 0.3, (count, num_burdens))
    trend = rng.normal(-0.12, 0.3, (count, 1)) * admission + rng.normal(-0.03, 0.12, (count, num_burdens))
    time = np.arange(NUM_HOURS)[:, None] / 24
    saturating = 1.5 * (1 - np.exp(-time / 1.5))  # no course goes on for ever
    swing = np.zeros((count, NUM_HOURS, num_burdens))
    for hour in range(1, NUM_HOURS):
        swing[:, hour] = 0.92 * swing[:, hour - 1] + rng.normal(0, 0.06, (count, num_burdens))
    course: np.ndarray = start[:, None] + trend[:, None] * saturating + swing
    course[..., SHOCK] += 0.25 * np.maximum(course[..., HEART], 0)
    return course


def _add_sepsis(
    burden: Float64[np.ndarray, "stay hour burden"],
    septic: Bool[np.ndarray, " stay"],
    onset: Int[np.ndarray, " stay"],
    rng: np.random.Generator,
) -> None:
    strength = septic * rng.lognormal(-0.05, 0.35, len(septic))
    since = np.arange(NUM_HOURS)[None] - onset[:, None]
    rise, collapse = (strength[:, None] / (1 + np.exp(-(since + lead) / 4)) for lead in (8, 1))
    burden[..., INFLAMMATION] += 0.6 * strength[:, None] + 1.05 * rise
    burden[..., SHOCK] += 0.25 * rise + 0.55 * collapse
    burden[..., LUNG] += 0.25 * rise + 0.3 * collapse
    burden[..., KIDNEY] += 0.1 * rise + 0.3 * collapse
