"""Who lies in the simulated ICU: diagnoses, the hourly course of six organ burdens, sepsis, and death.

Burdens run from 0 (none) to about 3 (failing). Sepsis is inflammation that rises from about eight hours before its
onset and drags perfusion, lung and kidney with it; death follows from burdens, age and chance: the two outcomes share
causes. A septic stay's series in the sepsis cohort ends six hours after the onset, as in YAIB. Every stay draws its
length from the same law first and the onset is counted back from it, so a series' length says nothing about its label.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int

BURDENS = ("inflammation", "shock", "lung", "kidney", "liver", "heart")
INFLAMMATION, SHOCK, LUNG, KIDNEY, LIVER, HEART = range(len(BURDENS))
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
