"""Disturbances of a simulated recording, at the electrodes: the twelve leads stay consistent under noise as well."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from medfed.modalities.signal import RAW_HZ

ELECTRODES = ("RA", "LA", "LL", "V1", "V2", "V3", "V4", "V5", "V6")


def _leads_of_electrodes() -> Float64[np.ndarray, "12 9"]:
    ra, la, ll, *chest = np.eye(len(ELECTRODES))
    limb = [la - ra, ll - ra, ll - la, ra - (la + ll) / 2, la - (ra + ll) / 2, ll - (ra + la) / 2]
    return np.array([*limb, *(position - (ra + la + ll) / 3 for position in chest)])


LEADS_OF_ELECTRODES = _leads_of_electrodes()


class NoiseShares(NamedTuple):
    """How often recordings are disturbed, and how completely that is written down.

    Attributes:
        drift: share with baseline wander at a chest electrode.
        static: share with muscle noise, of the limbs or of all leads.
        burst: share with a burst of movement.
        noted: share of bursts at chest electrodes that the annotator writes down.
        first_burst: first electrode that bursts; 3 leaves the limbs out.
        loose: share with a loose chest electrode.
    """

    drift: float = 0.12
    static: float = 0.2
    burst: float = 0.25
    noted: float = 0.3
    first_burst: int = 0
    loose: float = 0.0


class Disturbance(NamedTuple):
    """How a recording is disturbed: noise in millivolts per source, and what the annotator would write.

    Attributes:
        drift: amplitude of baseline wander per electrode.
        muscle: standard deviation of muscle noise per electrode.
        mains: amplitude of the power line.
        burst: electrode with a burst of movement, or None.
        notes: PTB-XL's free-text columns, by name.
        loose: electrode that loses contact, or None.
    """

    drift: Float64[np.ndarray, " electrode"]
    muscle: Float64[np.ndarray, " electrode"]
    mains: float
    burst: int | None
    notes: dict[str, str]
    loose: int | None = None


USUAL = NoiseShares()


def disturbance(level: float, rng: np.random.Generator, shares: NoiseShares = USUAL) -> Disturbance:
    """Draw one; ``level`` scales all of it (a device's style, the twin's difficulty)."""
    drift = level * rng.lognormal(np.log(0.03), 0.5, len(ELECTRODES))
    muscle = level * rng.lognormal(np.log(0.006), 0.4, len(ELECTRODES))
    notes: dict[str, str] = {}
    burst = None
    if rng.random() < shares.drift:
        electrode = int(rng.integers(3, 9))
        drift[electrode] += level * rng.uniform(0.1, 0.3)
        notes["baseline_drift"] = f" , {ELECTRODES[electrode]}"
    if rng.random() < shares.static:
        whole = rng.random() < 0.3
        muscle[: None if whole else 3] += level * rng.uniform(0.015, 0.035)
        notes["static_noise"] = " , alles,  " if whole else " , I-AVF,  "
    if rng.random() < shares.burst:
        burst = int(rng.integers(shares.first_burst, len(ELECTRODES)))
        if burst > 2 and rng.random() < shares.noted:
            problem = shares.loose == 0 and rng.random() >= 0.7
            notes["electrodes_problems" if problem else "burst_noise"] = ELECTRODES[burst]
    mains = level * rng.uniform(0.0, 0.01)
    loose = None
    if shares.loose and rng.random() < shares.loose:
        loose = int(rng.integers(3, len(ELECTRODES)))
        notes["electrodes_problems"] = ELECTRODES[loose]
    return Disturbance(drift, muscle, mains, burst, notes, loose)


def noise(source: Disturbance, num_samples: int, rng: np.random.Generator) -> Float64[np.ndarray, "12 time"]:
    """Return the noise of a recording in the twelve leads, millivolts."""
    time = np.arange(num_samples) / RAW_HZ
    count = len(ELECTRODES)
    white = rng.standard_normal((count, num_samples + 2))
    muscle = (white[:, 2:] - 0.4 * white[:, :-2] + 0.4 * white[:, 1:-1]) * source.muscle[:, None]
    breathing = np.sin(2 * np.pi * rng.uniform(0.15, 0.35) * time + rng.uniform(0, 2 * np.pi, (count, 1)))
    wander = np.sin(2 * np.pi * rng.uniform(0.04, 0.15, (count, 1)) * time + rng.uniform(0, 2 * np.pi, (count, 1)))
    potential = muscle + source.drift[:, None] * (0.6 * breathing + wander)
    line = source.mains * np.sin(2 * np.pi * rng.uniform(49.85, 49.95) * time)
    potential += rng.uniform(0.2, 1.0, (count, 1)) * line
    if source.burst is not None:
        for centre in rng.uniform(0, num_samples / RAW_HZ, int(rng.integers(1, 4))):
            envelope = np.exp(-0.5 * ((time - centre) / rng.uniform(0.04, 0.3)) ** 2)
            potential[source.burst] += envelope * (0.05 * rng.standard_normal(num_samples) + rng.normal(0, 0.6))
    if source.loose is not None:
        potential[source.loose] += _loose_contact(num_samples, rng)
    leads: np.ndarray = LEADS_OF_ELECTRODES @ potential
    return leads


def _loose_contact(num_samples: int, rng: np.random.Generator) -> Float64[np.ndarray, " time"]:
    """Jumps between levels, as an electrode makes that comes off and touches again."""
    switches = np.sort(rng.integers(0, num_samples, int(rng.integers(4, 9))))
    levels = rng.normal(0, 0.7, len(switches) + 1)
    steps: np.ndarray = levels[np.searchsorted(switches, np.arange(num_samples), side="right")]
    return steps
