"""Measures of a 12-lead ECG: rhythm, intervals, axis, and the shape of the median beat in every lead.

R peaks come from neurokit2. The beats of a lead are laid over each other at their R peaks, and their median is
measured. Noise and single odd beats drop out, so that small waves (P, a second R wave) can be found at 100 Hz. Onset
and end of the QRS complex and the P wave are sought in all leads together. A record in which fewer than four beats are
found has no measures.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float64, Int

from medfed.core.errors import StudyError

Trace = Float64[np.ndarray, "lead time"]
Beat = Float64[np.ndarray, "lead moment"]
HZ = 500
"""Median beats are measured at this rate, interpolated."""
BEFORE, AFTER = 0.32, 0.48
"""Seconds of a beat around its R peak."""
LEAST_BEATS = 4
LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
TERRITORIES: Mapping[str, tuple[str, ...]] = {
    "inferior": ("II", "III", "AVF"),
    "anterior": ("V1", "V2", "V3", "V4"),
    "lateral": ("I", "AVL", "V5", "V6"),
}
"""Leads that look at a part of the heart."""
UNITS: Mapping[str, str] = {
    **dict.fromkeys(("rate",), "/min"),
    **dict.fromkeys(("pr", "qrs", "qt", "qtc", "p_width", "rprime_delay"), "ms"),
    **dict.fromkeys(("irregularity", "premature", "wide_premature", "p_share", "r_s_v1"), "1"),
    "axis": "°",
    **dict.fromkeys(("p_ii", "p_negative_v1", "r_v1", "rprime_v1", "r_v3", "r_avl", "s_i_v6"), "mV"),
    **dict.fromkeys(("sokolow", "cornell", "limb_voltage", "r_v6", "qrs_v1"), "mV"),
    **{f"{kind}_{name}": "mV" for name in TERRITORIES for kind in ("st", "t", "q")},
}
"""Measure → its unit; ``st_inferior`` and its like are means over a territory's leads, ``t_`` the lowest lead."""


def measures_of(samples: Float[np.ndarray, "example lead time"], hz: int) -> dict[str, Float64[np.ndarray, " example"]]:
    """Return measure → value of every record, in the units of :data:`UNITS`; NaN where it cannot be measured.

    Raises StudyError if neurokit2 is not installed.
    """
    rows = [_of_record(np.asarray(sample, np.float64), hz) for sample in samples]
    return {f"ecg.{name}": np.array([row.get(name, np.nan) for row in rows], np.float64) for name in UNITS}


def r_peaks(signal: Trace, hz: int) -> Int[np.ndarray, " beat"]:
    """Return where the R peaks are, in the sum of all leads' slopes; none where nothing is found."""
    try:
        import neurokit2  # noqa: PLC0415 (optional: the extra ecg)
    except ImportError as error:
        hint = "pip install 'medfed[ecg]'"
        raise StudyError("ECG findings need neurokit2, which is not installed", hint=hint) from error
    lead = signal[np.argmax(np.ptp(signal, axis=1) * np.isin(LEADS[: len(signal)], ("II", "V5", "V6", "I")))]
    try:
        cleaned = neurokit2.ecg_clean(lead, sampling_rate=hz)
        _, places = neurokit2.ecg_peaks(cleaned, sampling_rate=hz)
    except (ValueError, IndexError, ZeroDivisionError):  # a flat or torn lead
        return np.zeros(0, np.int64)
    peaks = np.asarray(places["ECG_R_Peaks"], np.float64)
    return np.unique(peaks[np.isfinite(peaks)].astype(np.int64))


def _of_record(signal: Trace, hz: int) -> dict[str, float]:
    if len(signal) != len(LEADS) or not np.ptp(signal, axis=1).any():
        return {}
    peaks = r_peaks(signal, hz)
    if len(peaks) < LEAST_BEATS:
        return {}
    signal = _without_drift(signal, hz)
    beats = _beats(signal, peaks, hz)
    if len(beats) < LEAST_BEATS:
        return {}
    return {**_rhythm(peaks, beats, hz), **_shape(np.median(beats, axis=0), float(np.median(np.diff(peaks))) / hz)}


def _without_drift(signal: Trace, hz: int) -> Trace:
    """Take off what moves slower than 0.5 Hz."""
    from scipy.signal import butter, sosfiltfilt  # noqa: PLC0415 (large; loaded where it is used)

    filtered: Trace = sosfiltfilt(butter(2, 0.5, "highpass", fs=hz, output="sos"), signal, axis=1)
    return filtered


def _beats(signal: Trace, peaks: Int[np.ndarray, " beat"], hz: int) -> Float64[np.ndarray, "whole_beat lead moment"]:
    """Return the beats that lie within the record, each moved to where it fits the median best."""
    moments = np.arange(-BEFORE, AFTER, 1 / HZ)
    time = np.arange(signal.shape[1]) / hz
    kept = [peak / hz for peak in peaks if peak / hz >= BEFORE and peak / hz + AFTER <= time[-1]]

    def cut(at: float) -> Beat:
        return np.stack([np.interp(at + moments, time, lead) for lead in signal])

    beats = np.array([cut(at) for at in kept])
    if len(beats) < LEAST_BEATS:
        return beats
    core = np.abs(moments) < 0.08
    middle, aligned = np.median(beats, axis=0)[:, core], []
    for at in kept:
        shifts = [cut(at + shift) for shift in (-0.02, -0.01, 0.0, 0.01, 0.02)]
        aligned.append(min(shifts, key=lambda beat: float(np.square(beat[:, core] - middle).sum())))
    return np.array(aligned)


def _rhythm(
    peaks: Int[np.ndarray, " beat"], beats: Float64[np.ndarray, "whole_beat lead moment"], hz: int
) -> dict[str, float]:
    """Return rate, irregularity, and the shares of premature beats and of wide ones among them."""
    gaps = np.diff(peaks) / hz
    usual = float(np.median(gaps))
    early = gaps < 0.8 * usual
    moments = np.arange(-BEFORE, AFTER, 1 / HZ)
    core = np.abs(moments) < 0.1
    middle = np.median(beats, axis=0)[:, core]
    unlike = np.array([1 - _correlation(beat[:, core], middle) for beat in beats])
    successive = np.abs(np.diff(gaps)) if len(gaps) > 1 else np.zeros(1)
    return {
        "rate": 60 / float(gaps.mean()),
        "irregularity": float(np.median(successive)) / usual,
        "premature": float(early.mean()),
        "wide_premature": float((unlike > 0.3).mean()),
    }


def _correlation(a: Float64[np.ndarray, "..."], b: Float64[np.ndarray, "..."]) -> float:
    spread = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread else 0.0


def _shape(beat: Beat, gap: float) -> dict[str, float]:
    """Return intervals and amplitudes of the median beat; the level before the QRS complex is zero."""
    peak = round(BEFORE * HZ)
    start, end = _qrs(beat, peak)
    level = np.median(beat[:, max(0, start - round(0.02 * HZ)) : max(1, start - round(0.004 * HZ))], axis=1)
    beat = beat - level[:, None]
    lead = {name: beat[number] for number, name in enumerate(LEADS)}
    qrs = {name: values[start:end] for name, values in lead.items()}
    made = {"qrs": 1000 * (end - start) / HZ, "axis": _axis(qrs)}
    made |= _p_wave(beat, lead, start)
    made |= _t_wave(beat, lead, start, end, gap)
    made |= _voltages(qrs) | _second_r(qrs["V1"])
    joint = end + round(0.04 * HZ)
    for name, leads in TERRITORIES.items():
        made[f"st_{name}"] = float(np.mean([lead[one][end + round(0.02 * HZ) : joint].mean() for one in leads]))
        made[f"q_{name}"] = max(_q_depth(qrs[one]) for one in leads)
    return made


def _qrs(beat: Beat, peak: int) -> tuple[int, int]:
    """Return where the QRS complex begins and ends: where the joint slope stays low for 12 ms."""
    slope = np.sqrt(np.square(np.gradient(beat, axis=1)).sum(0))
    slope = np.convolve(slope, np.ones(5) / 5, mode="same")
    limit, quiet = 0.12 * slope[peak - round(0.1 * HZ) : peak + round(0.1 * HZ)].max(), round(0.012 * HZ)
    start, end = peak, peak
    while start > quiet and not (slope[start - quiet : start] < limit).all():
        start -= 1
    while end < len(slope) - quiet and not (slope[end : end + quiet] < limit).all():
        end += 1
    return max(start, peak - round(0.12 * HZ)), min(end, peak + round(0.14 * HZ))


def _axis(qrs: Mapping[str, Float64[np.ndarray, " moment"]]) -> float:
    """Return the electrical axis in the frontal plane, in degrees, by the areas of I and aVF."""
    return float(np.degrees(np.arctan2(2 / np.sqrt(3) * qrs["AVF"].sum(), qrs["I"].sum())))


def _p_wave(beat: Beat, lead: Mapping[str, Float64[np.ndarray, " moment"]], start: int) -> dict[str, float]:
    """Return PR interval, and height, width and share of the P wave; its onset is where all leads begin to rise."""
    window = beat[:, : max(start - round(0.02 * HZ), 1)]
    size = np.sqrt(np.square(window - np.median(window, axis=1)[:, None]).sum(0))
    size = np.convolve(size, np.ones(9) / 9, mode="same")
    top = int(np.argmax(size[round(0.04 * HZ) :])) + round(0.04 * HZ) if len(size) > round(0.06 * HZ) else 0
    height, noise = float(size[top]), float(np.median(size))
    limit = noise + 0.3 * (height - noise)
    onset, finish = top, top
    while onset > 0 and size[onset] > limit:
        onset -= 1
    while finish < len(size) - 1 and size[finish] > limit:
        finish += 1
    complex_ = float(np.sqrt(np.square(beat).sum(0)).max())
    clear = height > 1.8 * noise
    return {
        "p_share": height / complex_ if complex_ else np.nan,
        "pr": 1000 * (start - onset) / HZ if clear and onset > 0 else np.nan,
        "p_width": 1000 * (finish - onset) / HZ if clear else np.nan,
        "p_ii": float(lead["II"][onset : finish + 1].max()),
        "p_negative_v1": float(-lead["V1"][onset : finish + 1].min()),
    }


def _t_wave(
    beat: Beat, lead: Mapping[str, Float64[np.ndarray, " moment"]], start: int, end: int, gap: float
) -> dict[str, float]:
    """Return QT intervals, and the lowest T wave of each territory: its extreme value behind the QRS complex."""
    first = end + round(0.08 * HZ)
    last = min(beat.shape[1], start + round(min(0.65 * gap + 0.1, 0.55) * HZ))
    if last - first < round(0.06 * HZ):
        return {}
    size = np.sqrt(np.square(beat[:, first:last]).sum(0))
    top = int(np.argmax(size))
    finish = top
    floor = float(size[top:].min())
    while finish < len(size) - 1 and size[finish] > floor + 0.15 * (size[top] - floor):
        finish += 1
    qt = (first + finish - start) / HZ
    made = {"qt": 1000 * qt, "qtc": 1000 * qt / gap ** (1 / 3)}
    for name, leads in TERRITORIES.items():
        parts = [lead[one][first:last] for one in leads if one not in ("V1",)]
        made[f"t_{name}"] = min(float(part[np.argmax(np.abs(part))]) for part in parts)
    return made


def _voltages(qrs: Mapping[str, Float64[np.ndarray, " moment"]]) -> dict[str, float]:
    """Return heights of R waves and depths of S waves; Sokolow–Lyon and Cornell voltages."""
    high = {name: max(0.0, float(values.max())) for name, values in qrs.items()}
    deep = {name: max(0.0, float(-values.min())) for name, values in qrs.items()}
    half = {name: values[len(values) // 2 :] for name, values in qrs.items()}
    return {
        "r_v1": high["V1"],
        "r_v3": high["V3"],
        "r_v6": high["V6"],
        "r_avl": high["AVL"],
        "r_s_v1": high["V1"] / (high["V1"] + deep["V1"]) if high["V1"] + deep["V1"] else np.nan,
        "qrs_v1": float(qrs["V1"].sum()) / HZ * 10,
        "s_i_v6": max(0.0, float(-half["I"].min())) + max(0.0, float(-half["V6"].min())),
        "sokolow": deep["V1"] + max(high["V5"], high["V6"]),
        "cornell": high["AVL"] + deep["V3"],
        "limb_voltage": max(high[name] + deep[name] for name in ("I", "II", "III", "AVL", "AVF")),
    }


def _second_r(v1: Float64[np.ndarray, " moment"]) -> dict[str, float]:
    """Return height and delay of a second R wave in V1: how far the voltage rises again behind the deepest point."""
    if len(v1) < 5:
        return {}
    first = int(np.argmax(v1[: max(2, int(0.5 * len(v1)))]))
    deepest = first + int(np.argmin(v1[first : max(first + 2, int(0.85 * len(v1)))]))
    again = deepest + int(np.argmax(v1[deepest:]))
    rise = float(v1[again] - v1[deepest])
    second = min(rise, float(v1[again]) + 0.05) if v1[again] > -0.05 and again < len(v1) - 2 else 0.0
    return {"rprime_v1": max(0.0, second), "rprime_delay": 1000 * again / HZ if second > 0.05 else 0.0}


def _q_depth(qrs: Float64[np.ndarray, " moment"]) -> float:
    """Return how deep the first downward wave is, if it comes before the highest point and lasts 20 ms or more."""
    top = int(np.argmax(qrs)) if qrs.max() > 0.05 else len(qrs)
    before = qrs[:top]
    below = before < -0.03
    return float(-before.min()) if below.sum() >= round(0.02 * HZ) else 0.0
