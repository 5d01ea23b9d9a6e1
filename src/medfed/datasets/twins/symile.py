"""The synthetic twin of Symile-MIMIC: admissions whose film, ECG and blood tests share a simulated physiology.

What binds the modalities is of two kinds. *Pairs*: severity shows in all three, the heart's size in film and ECG,
inflammation in film and blood. *The triple*: three signs of the ECG (a), three of the blood (b) and three of the film
(c = a XOR b). Each c is independent of a alone and of b alone, so no pair of modalities knows anything of it, while two
modalities together determine the third. A sum of pairwise losses cannot use it; the Symile loss can.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float32, Float64

from medfed.datasets.base import TwinSpec
from medfed.datasets.twins.symile_signs import draw_film, draw_labs, record_ecg
from medfed.rng import numpy_rng

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
    """What an admission's three modalities have in common.

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
    film = draw_film(body.severity, body.heart, body.inflammation, body.film, spec.image_size, noise, rng)
    ecg = record_ecg(body.severity, body.heart, body.ecg, noise, rng)
    labs = draw_labs(body.severity, body.inflammation, body.blood, len(LAB_ITEMS), noise, rng)
    healthy = body.severity + body.inflammation + rng.standard_normal() < -1
    number = FIRST_ADMISSION + 2 * person + visit
    return Admission(FIRST_SUBJECT + person, number, film, ecg, labs, healthy)


def _with_candidates(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and the query each stands for: first every query, then nine others for each (fewer if there are)."""
    rows, query = [np.arange(count)], [np.arange(count)]
    for own in range(count):
        others = rng.permutation(np.delete(np.arange(count), own))[: NUM_CANDIDATES - 1]
        rows.append(others)
        query.append(np.full(len(others), own))
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
        own = (query == np.arange(len(query))).astype(np.int64)
        table |= {"label_hadm_id": numbers[query], "label": own}
        arrays |= {"label_hadm_id": numbers[query], "label": own}
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
