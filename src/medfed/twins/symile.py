"""The synthetic twin of Symile-MIMIC: admissions whose film, ECG and blood tests share a simulated physiology.

The modalities are bound in two ways. *Pairs*: severity is visible in all three, the heart's size in film and ECG,
inflammation in film and blood. *The triple*: three signs of the ECG (a), three of the blood (b) and three of the film
(c = a XOR b). Each c is independent of a alone and of b alone, so no pair of modalities knows anything of it. Two
modalities together determine the third. A sum of pairwise losses cannot use this; the Symile loss can.

Signs are ±1. On the film a sign puts an opacity on the left or the right, one sign per height. The ECG's signs are the
T wave in the chest leads, the ST segment in the inferior leads, and the axis. In the blood a sign raises or lowers a
group of tests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float32, Float64

from medfed.core.rng import numpy_rng
from medfed.study.data import TwinSpec

NUM_SIGNS = 3
NUM_CANDIDATES = 10
SHARE_SECOND_ADMISSION = 0.1
FIRST_SUBJECT, FIRST_ADMISSION = 1_000_000, 2_000_000
SPLIT_SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


# fmt: off
LAB_ITEMS = (
    "50802", "50804", "50813", "50818", "50820", "50821", "50861", "50862", "50863", "50868", "50878", "50882", "50885",
    "50893", "50902", "50910", "50912", "50931", "50934", "50947", "50960", "50970", "50971", "50983", "51006", "51133",
    "51146", "51200", "51221", "51222", "51237", "51244", "51248", "51249", "51250", "51254", "51256", "51265", "51274",
    "51275", "51277", "51279", "51301", "51678", "52069", "52073", "52074", "52075", "52135", "52172",
)
# fmt: on
"""MIMIC-IV's codes of the 50 blood tests, in the order of the arrays."""


class Physiology(NamedTuple):
    """The common causes of an admission's three modalities.

    Attributes:
        severity: shows in all three.
        heart: size of the heart; film and ECG.
        inflammation: film and blood.
        ecg, blood, film: signs of ±1; ``film = −ecg · blood``, which is XOR.
    """

    severity: float
    heart: float
    inflammation: float
    ecg: Float64[np.ndarray, " sign"]
    blood: Float64[np.ndarray, " sign"]
    film: Float64[np.ndarray, " sign"]

    def scaled(self, clarity: float) -> Physiology:
        """Return what shows of it, from nothing (0) to all (1)."""
        return Physiology(
            clarity * self.severity,
            clarity * self.heart,
            clarity * self.inflammation,
            clarity * self.ecg,
            clarity * self.blood,
            clarity * self.film,
        )


class Admission(NamedTuple):
    """One row of the tables and arrays: the image in [0, 1], the ECG in [−1, 1], blood values (NaN: not measured)."""

    subject: int
    number: int
    image: Float32[np.ndarray, "row column"]
    ecg: Float32[np.ndarray, "time lead"]
    labs: Float64[np.ndarray, " lab"]
    no_finding: bool


def draw_physiology(rng: np.random.Generator) -> Physiology:
    """Draw one admission's physiology."""
    severity, heart, inflammation = rng.standard_normal(3)
    ecg, blood = rng.choice((-1.0, 1.0), size=(2, NUM_SIGNS))
    return Physiology(severity, heart, inflammation, ecg, blood, -ecg * blood)


def write_symile_twin(root: Path, spec: TwinSpec) -> None:
    """Write the twin: tables, arrays and ``labs_means.json``; a tenth of the patients have two admissions."""
    plan = numpy_rng("symile", spec.seed, "plan")
    ends = np.cumsum([round(share * spec.num_patients) for share in SPLIT_SHARES.values()])
    people = np.split(plan.permutation(spec.num_patients), ends[:-1])
    twice = plan.random(spec.num_patients) < SHARE_SECOND_ADMISSION
    splits = {
        name: [_admission(spec, int(person), visit) for person in part for visit in range(1 + twice[person])]
        for name, part in zip(SPLIT_SHARES, people, strict=True)
    }
    known = np.array([admission.labs for admission in splits["train"]])
    means = _percentiles(known, known)
    centre = np.nan_to_num(np.nanmean(np.vstack([means, np.full(means.shape[1], 0.5)]), 0), nan=0.5)
    for name, admissions in splits.items():
        rows = np.arange(len(admissions))
        query = rows
        if name == "test":
            rows, query = _with_candidates(len(admissions), numpy_rng("symile", spec.seed, "candidates"))
        _write_split(root, name, [admissions[row] for row in rows], known, centre, query)
    text = json.dumps({f"{item}_percentile": value for item, value in zip(LAB_ITEMS, centre, strict=True)}, indent=4)
    (root / "labs_means.json").write_text(text, encoding="utf-8")


def _admission(spec: TwinSpec, person: int, visit: int) -> Admission:
    rng = numpy_rng("symile", spec.seed, "admission", person, visit)
    body, noise = draw_physiology(rng).scaled(min(2 * (1 - spec.difficulty), 1.0)), spec.difficulty
    film = draw_film(body, spec.image_size, noise, rng)
    ecg = record_ecg(body, noise, rng)
    labs = draw_labs(body, len(LAB_ITEMS), noise, rng)
    healthy = body.severity + body.inflammation + rng.standard_normal() < -1
    number = FIRST_ADMISSION + 2 * person + visit
    return Admission(FIRST_SUBJECT + person, number, film, ecg, labs, healthy)


def _with_candidates(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and the query each stands for: first every query, then nine others for each (fewer if there are)."""
    rows, query = [np.arange(count)], [np.arange(count)]
    for number in range(count):
        others = rng.permutation(np.delete(np.arange(count), number))[: NUM_CANDIDATES - 1]
        rows.append(others)
        query.append(np.full(len(others), number))
    return np.concatenate(rows), np.concatenate(query)


def _write_split(
    root: Path,
    name: str,
    admissions: list[Admission],
    known: Float64[np.ndarray, "admission lab"],
    centre: Float64[np.ndarray, " lab"],
    query: np.ndarray,
) -> None:
    values = np.array([admission.labs for admission in admissions])
    percentiles = _percentiles(values, known)
    measured = ~np.isnan(values)
    images = np.stack([admission.image for admission in admissions])[:, None].repeat(3, 1)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    numbers = np.array([admission.number for admission in admissions])
    arrays = {
        "cxr": ((images - mean[:, None, None]) / std[:, None, None]).astype(np.float32),
        "ecg": np.stack([admission.ecg for admission in admissions])[:, None],
        "labs_percentiles": np.where(measured, percentiles, centre).astype(np.float32),
        "labs_missingness": measured.astype(np.int64),
        "hadm_id": numbers,
    }
    table = {
        "subject_id": [admission.subject for admission in admissions],
        "hadm_id": numbers,
        "No Finding": [1.0 if admission.no_finding else None for admission in admissions],
        **{item: _nullable(values[:, lab]) for lab, item in enumerate(LAB_ITEMS)},
        **{f"{item}_percentile": _nullable(percentiles[:, lab]) for lab, item in enumerate(LAB_ITEMS)},
    }
    if name == "test":
        itself = (query == np.arange(len(query))).astype(np.int64)
        table |= {"label_hadm_id": numbers[query], "label": itself}
        arrays |= {"label_hadm_id": numbers[query], "label": itself}
    folder = root / "data_npy" / name
    folder.mkdir(parents=True)
    for key, array in arrays.items():
        np.save(folder / f"{key}_{name}.npy", array, allow_pickle=False)
    pl.DataFrame(table).write_csv(root / f"{name}.csv")


def _percentiles(
    values: Float64[np.ndarray, "row lab"], known: Float64[np.ndarray, "admission lab"]
) -> Float64[np.ndarray, "row lab"]:
    """Percentile of every value among the measured ``known`` ones of its test; NaN where it was not measured."""
    result = np.full_like(values, np.nan)
    for lab in range(values.shape[1]):
        column, rows = np.sort(known[~np.isnan(known[:, lab]), lab]), ~np.isnan(values[:, lab])
        result[rows, lab] = np.searchsorted(column, values[rows, lab], side="right") / max(len(column), 1)
    return result


def _nullable(column: Float64[np.ndarray, " row"]) -> pl.Series:
    return pl.Series(column).fill_nan(None)


NUM_SAMPLES, HZ = 1000, 500
"""Deviation: two seconds at the release's rate, where the release has ten: the twin's arrays stay small."""
LEADS = ("I", "II", "III", "AVR", "AVF", "AVL", "V1", "V2", "V3", "V4", "V5", "V6")
QRS = dict(zip(LEADS, (0.6, 1.0, 0.5, -0.8, 0.7, 0.2, -0.6, -0.3, 0.4, 0.9, 1.0, 0.8), strict=True))
CHEST, INFERIOR, AXIS = LEADS[6:], ("II", "III", "AVF"), ("I", "AVL", "AVR")


def draw_film(body: Physiology, size: int, noise: float, rng: np.random.Generator) -> Float32[np.ndarray, "row column"]:
    """Return a grey frontal film in [0, 1]: two dark lungs, a bright heart, haze, and one opacity per sign."""
    shift_x, shift_y = 0.04 * noise * rng.standard_normal(2)
    grid = np.linspace(-1, 1, size)
    x, y = grid[None, :] - shift_x, grid[:, None] - shift_y

    def blob(centre_x: float, centre_y: float, wide: float, high: float) -> Float64[np.ndarray, "row column"]:
        inside = ((x - centre_x) / wide) ** 2 + ((y - centre_y) / high) ** 2
        shade: np.ndarray = np.exp(-(inside**2))
        return shade

    film = 0.55 * blob(0.0, 0.0, 0.95, 1.1)
    haze = 0.12 * np.clip(body.inflammation, -2, 2)
    for side in (-1, 1):
        film -= (0.35 - haze) * blob(0.45 * side, -0.05, 0.33, 0.7)
    film += 0.35 * blob(0.1, 0.25, 0.25 + 0.09 * np.clip(body.heart, -2, 2), 0.3)
    strength = 0.3 + 0.12 * np.clip(body.severity, -2, 2)
    for place, sign in zip((-0.45, 0.0, 0.45), body.film, strict=True):
        film += strength * blob(0.5 * sign, place, 0.16, 0.16)
    film += 0.05 * noise * rng.standard_normal((size, size))
    grey: np.ndarray = (film + 0.1).clip(0, 1).astype(np.float32)
    return grey


def record_ecg(body: Physiology, noise: float, rng: np.random.Generator) -> Float32[np.ndarray, "time lead"]:
    """Return a 12-lead ECG scaled to [−1, 1]: severity is rate and T wave, the heart's size the width of the QRS."""
    signs = body.ecg
    period = 60 / np.clip(80 + 14 * body.severity, 45, 140)
    width = 0.02 + 0.007 * np.clip(body.heart, -2, 2)
    height = 0.3 + 0.1 * np.clip(body.severity, -2, 2)
    time = np.arange(NUM_SAMPLES) / HZ
    beats = np.arange(-1, 5) * period + rng.uniform(0, period)
    after = time[:, None] - beats

    def wave(delay: float, spread: float) -> Float64[np.ndarray, " time"]:
        bumps: np.ndarray = np.exp(-0.5 * ((after - delay) / spread) ** 2).sum(1)
        return bumps

    qrs, t_wave, st, p_wave = wave(0.0, width), wave(0.26, 0.05), wave(0.12, 0.04), wave(-0.15, 0.02)
    signal = np.empty((NUM_SAMPLES, len(LEADS)))
    for column, lead in enumerate(LEADS):
        turned = signs[2] if lead in AXIS else 1.0
        t_sign = signs[0] if lead in CHEST else 1.0
        lifted = 0.25 * signs[1] if lead in INFERIOR else 0.0
        signal[:, column] = turned * QRS[lead] * qrs + height * t_sign * t_wave + lifted * st + 0.12 * p_wave
    signal += 0.04 * noise * rng.standard_normal(signal.shape)
    signal += 0.05 * noise * np.sin(2 * np.pi * (0.3 * time + rng.random()))[:, None]
    low, high = signal.min(), signal.max()
    scaled: np.ndarray = 2 * (signal - low) / (high - low) - 1
    return scaled.astype(np.float32)


def draw_labs(body: Physiology, num_labs: int, noise: float, rng: np.random.Generator) -> Float64[np.ndarray, " lab"]:
    """Return blood values around 100; each test follows one of five causes; about a third are not measured (NaN)."""
    causes = np.array([body.severity, body.inflammation, *body.blood])
    values = 100 + 15 * (causes[np.arange(num_labs) % len(causes)] + noise * rng.standard_normal(num_labs))
    missing = rng.random(num_labs) < 0.3
    missing[rng.integers(num_labs)] = False
    return np.where(missing, np.nan, values)
