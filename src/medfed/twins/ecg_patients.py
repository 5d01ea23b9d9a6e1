"""The patients of the PTB-XL twin, the diseases of their hearts, and a reader's SCP-ECG statements about them.

A chronic disease stays with a patient; ectopic beats come and go. Ectopic beats are more frequent in diseased hearts,
and many ventricular ones are themselves pathological: about seven in ten recordings with ectopic beats are abnormal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medfed.twins.ecg_beats import Origin

SHARE_DISEASED = 0.42
SHARE_ECTOPIC = {True: 0.2, False: 0.11}
"""Share of recordings with ectopic beats in diseased and in healthy hearts."""
DISEASES: tuple[tuple[float, tuple[str, ...]], ...] = (
    (12, ("NDT",)),
    (6, ("NST_",)),
    (10, ("ISCAL",)),
    (5, ("ISCIN",)),
    (3, ("LNGQT",)),
    (10, ("IMI",)),
    (4, ("IMI", "INJIN")),
    (8, ("ASMI",)),
    (4, ("ASMI", "INJAS")),
    (5, ("ALMI",)),
    (10, ("LVH",)),
    (4, ("LVH", "LAFB")),
    (8, ("CLBBB",)),
    (7, ("CRBBB",)),
    (4, ("CRBBB", "LAFB")),
    (4, ("IRBBB",)),
    (7, ("LAFB",)),
    (5, ("1AVB",)),
    (9, ("AFIB",)),
    (4, ("AFIB", "NDT")),
)
"""Weight and statements of each disease."""
PHRASES = {
    "NDT": "unspezifisches abnormales t",
    "NST_": "unspezifische st-veränderung",
    "ISCAL": "st-t-veränderung, verdacht auf anterolaterale ischämie",
    "ISCIN": "st-t-veränderung, verdacht auf inferiore ischämie",
    "LNGQT": "qt verlängert",
    "IMI": "inferiorer infarkt",
    "INJIN": "st-hebung inferior",
    "ASMI": "anteroseptaler infarkt",
    "INJAS": "st-hebung anteroseptal",
    "ALMI": "anterolateraler infarkt",
    "LVH": "linkshypertrophie",
    "CLBBB": "linksschenkelblock",
    "CRBBB": "rechtsschenkelblock",
    "IRBBB": "inkompletter rechtsschenkelblock",
    "LAFB": "linksanteriorer hemiblock",
    "1AVB": "av-block i. grades",
    "AFIB": "vorhofflimmern",
    "PVC": "ventrikuläre extrasystole(n)",
    "PAC": "supraventrikuläre extrasystole(n)",
    "LVOLT": "periphere niederspannung",
}


class Patient(NamedTuple):
    """Constants of a person over recordings; ``severity`` has one number per statement of ``disease``."""

    age: int
    sex: int
    disease: tuple[str, ...]
    severity: tuple[float, ...]
    rate: float
    low_voltage: bool


class Finding(NamedTuple):
    """Findings of one recording: SCP statements with likelihoods, rhythm and ectopic beats.

    Attributes:
        codes: the statements a reader writes.
        waves: (finding, severity) that change the waves.
        rate: beats per minute.
        respiratory: respiratory arrhythmia, share of RR.
        fibrillation: 0 or the severity of atrial fibrillation.
        ectopics: origin of each ectopic beat.
        prematurity: how early and how strange they are (1 as they are).
        extra_beats: the text of the column of that name, or None.
    """

    codes: dict[str, float]
    waves: tuple[tuple[str, float], ...]
    rate: float
    respiratory: float
    fibrillation: float
    ectopics: tuple[Origin, ...]
    prematurity: float
    extra_beats: str | None


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw a person; the diseased are older."""
    diseased = rng.random() < SHARE_DISEASED
    weights = np.array([weight for weight, _ in DISEASES])
    pick = int(rng.choice(len(DISEASES), p=weights / weights.sum()))
    disease = DISEASES[pick][1] if diseased else ()
    age = int(np.clip(rng.normal(67 if diseased else 53, 13 if diseased else 18), 18, 89))
    severity = tuple(float(value) for value in rng.lognormal(np.log(0.5), 0.65, len(disease)).clip(0, 1.6))
    return Patient(age, int(rng.integers(2)), disease, severity, float(rng.normal(70, 10)), bool(rng.random() < 0.05))


def draw_finding(patient: Patient, visibility: float, rng: np.random.Generator) -> Finding:
    """Draw one recording of ``patient``; ``visibility`` scales how strongly disease shows (1 at difficulty 0.5)."""
    waves = tuple(
        (code, float(visibility * severity * rng.lognormal(0, 0.1)))
        for code, severity in zip(patient.disease, patient.severity, strict=True)
        if code != "AFIB"
    )
    fibrillation = min(1.0, visibility * patient.severity[0] * 1.6) if "AFIB" in patient.disease else 0.0
    rate, rhythm, respiratory = _rhythm(patient, rng)
    prematurity = min(1.0, visibility * float(rng.uniform(0.25, 0.95)))
    ectopics, text, ectopic_codes = _ectopics(bool(patient.disease), rng)
    codes = {code: 0.0 if code == "AFIB" else float(rng.choice([100, 100, 80, 50])) for code in patient.disease}
    codes |= ectopic_codes
    if not codes or set(codes) == {"PAC"}:
        codes = {"NORM": float(rng.choice([100, 100, 100, 80]))} | codes
    if patient.low_voltage:
        codes["LVOLT"] = 0.0
    if not fibrillation:
        codes[rhythm] = 0.0
    return Finding(codes, waves, rate, respiratory, fibrillation, ectopics, prematurity, text)


def report(finding: Finding) -> str:
    """Free text in the style of the archive."""
    rhythm = {
        "SBRAD": "sinusbradykardie",
        "STACH": "sinustachykardie",
        "SARRH": "sinusarrhythmie",
        "SR": "sinusrhythmus",
    }
    words = [phrase for code, phrase in rhythm.items() if code in finding.codes]
    words += [PHRASES[code] for code in finding.codes if code in PHRASES]
    return " ".join([*words, "normales ekg"] if "NORM" in finding.codes else words)


def _rhythm(patient: Patient, rng: np.random.Generator) -> tuple[float, str, float]:
    """Rate, rhythm statement and respiratory arrhythmia; none of the four sinus rhythms is abnormal by itself."""
    chance = rng.random()
    if "AFIB" in patient.disease:
        return float(np.clip(rng.normal(88, 18), 55, 140)), "AFIB", 0.0
    if chance < 0.07:
        return float(rng.uniform(42, 54)), "SBRAD", 0.03
    if chance < 0.12:
        return float(rng.uniform(102, 125)), "STACH", 0.01
    if chance < 0.2:
        return float(np.clip(patient.rate, 56, 95)), "SARRH", float(rng.uniform(0.08, 0.15))
    return float(np.clip(patient.rate + rng.normal(0, 4), 55, 99)), "SR", float(rng.uniform(0.01, 0.04))


def _ectopics(diseased: bool, rng: np.random.Generator) -> tuple[tuple[Origin, ...], str | None, dict[str, float]]:
    """Ectopic beats, the annotator's text, and their statement (a single one is often left without)."""
    if rng.random() >= SHARE_ECTOPIC[diseased]:
        return (), None, {}
    origin: Origin = "ventricular" if rng.random() < 0.7 else "supraventricular"
    number = int(rng.choice([1, 2, 3, 4], p=[0.5, 0.25, 0.15, 0.1]))
    ectopics: tuple[Origin, ...] = (origin,) * number
    if origin == "ventricular" and number > 2 and rng.random() < 0.2:
        return (*ectopics[1:], "supraventricular"), "VES, SVES", {"PVC": 100.0}
    name = "VES" if origin == "ventricular" else "SVES"
    text = f"{number}ES" if number < 4 and rng.random() < 0.6 else name
    if origin == "supraventricular":
        return ectopics, text, {"PAC": 0.0}
    return ectopics, text, {"PVC": 100.0} if number > 1 or diseased else {}
