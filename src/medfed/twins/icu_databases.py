"""The synthetic twins of MIMIC-IV and eICU: the simulated stays of :mod:`.icu`, in the databases' own tables.

The tables go beyond the first day, and some patients come twice. eICU's hospitals differ in size as real ones do: the
largest has many stays, the last ones have one or two.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float64

from medfed.core.rng import numpy_rng
from medfed.modalities.timeseries import LABS
from medfed.study.data import TwinSpec
from medfed.twins.icu import blocks

HOURS_WRITTEN = 40
RETURNS_EVERY = 9
"""Every ninth stay is a second admission of the patient before."""
MIMIC_ITEMS = {  # variable → itemid and unit; what is not here is not written
    "alb": ("50862", "g/dL"),
    "alt": ("50861", "IU/L"),
    "ast": ("50878", "IU/L"),
    "be": ("50802", "mEq/L"),
    "bicar": ("50882", "mEq/L"),
    "bili": ("50885", "mg/dL"),
    "bun": ("51006", "mg/dL"),
    "ca": ("50893", "mg/dL"),
    "cai": ("50808", "mmol/L"),
    "cl": ("50902", "mEq/L"),
    "crea": ("50912", "mg/dL"),
    "crp": ("50889", "mg/L"),
    "glu": ("50931", "mg/dL"),
    "hgb": ("51222", "g/dL"),
    "inr_pt": ("51237", ""),
    "k": ("50971", "mEq/L"),
    "lact": ("50813", "mmol/L"),
    "na": ("50983", "mEq/L"),
    "pco2": ("50818", "mm Hg"),
    "ph": ("50820", "units"),
    "plt": ("51265", "K/uL"),
    "po2": ("50821", "mm Hg"),
    "ptt": ("51275", "sec"),
    "wbc": ("51301", "K/uL"),
}

EICU_NAMES = {  # variable → labname, unit, and eICU's value per unit of ours
    "alb": ("albumin", "g/dL", 1.0),
    "alt": ("ALT (SGPT)", "Units/L", 1.0),
    "be": ("Base Excess", "mEq/L", 1.0),
    "bicar": ("bicarbonate", "mmol/L", 1.0),
    "bili": ("total bilirubin", "mg/dL", 1.0),
    "bun": ("BUN", "mg/dL", 1.0),
    "cai": ("ionized calcium", "mg/dL", 4.008),
    "crea": ("creatinine", "mg/dL", 1.0),
    "crp": ("CRP", "mg/dL", 0.1),
    "glu": ("bedside glucose", "mg/dL", 1.0),
    "hgb": ("Hgb", "g/dL", 1.0),
    "inr_pt": ("PT - INR", "ratio", 1.0),
    "k": ("potassium", "mmol/L", 1.0),
    "lact": ("lactate", "mmol/L", 1.0),
    "na": ("sodium", "mmol/L", 1.0),
    "pco2": ("paCO2", "mm Hg", 1.0),
    "ph": ("pH", "", 1.0),
    "plt": ("platelets x 1000", "K/mcL", 1.0),
    "wbc": ("WBC x 1000", "K/mcL", 1.0),
}


class Stay(NamedTuple):
    """One simulated stay: its number, its patient's number, and what the tables need."""

    number: int
    patient: int
    age: int
    female: bool
    died: bool
    labs: dict[str, Float64[np.ndarray, " hour"]]


def write_mimic_iv_twin(root: Path, spec: TwinSpec) -> None:
    """Write ``hosp/`` and ``icu/``, gzipped; equal specs give equal bytes."""
    tables: dict[str, list[dict[str, str]]] = {
        name: [] for name in ("hosp/patients", "hosp/admissions", "icu/icustays", "hosp/labevents")
    }
    known: set[int] = set()
    for stay in _stays(spec):
        rng = numpy_rng(spec.seed, "mimic-iv", stay.number)
        subject, admission = str(10_000_000 + stay.patient), str(20_000_000 + stay.number)
        intime = datetime(2150, 1, 1) + timedelta(days=40 * stay.number, minutes=int(rng.integers(1440)))
        sex, year = "F" if stay.female else "M", str(intime.year)
        if stay.patient not in known:
            row = {"subject_id": subject, "gender": sex, "anchor_age": str(stay.age), "anchor_year": year, "dod": ""}
            tables["hosp/patients"].append(row)
        known.add(stay.patient)
        ids = {"subject_id": subject, "hadm_id": admission}
        left = intime + timedelta(hours=HOURS_WRITTEN)
        times = {"admittime": str(intime - timedelta(hours=5)), "dischtime": str(left)}
        tables["hosp/admissions"].append({**ids, **times, "hospital_expire_flag": str(int(stay.died))})
        unit = {"stay_id": str(30_000_000 + stay.number), "intime": str(intime), "outtime": str(left)}
        tables["icu/icustays"].append({**ids, **unit})
        for variable, hour, value in _measured(stay):
            if variable in MIMIC_ITEMS:
                item, name = MIMIC_ITEMS[variable]
                charted = intime + timedelta(hours=hour, minutes=int(rng.integers(60)))
                cells = {"itemid": item, "charttime": str(charted), "valuenum": f"{value:g}", "valueuom": name}
                tables["hosp/labevents"].append({**ids, **cells})
    for name, rows in tables.items():
        path = root / f"{name}.csv.gz"
        path.parent.mkdir(exist_ok=True)
        # no time stamp: equal tables are equal bytes
        path.write_bytes(gzip.compress(pl.DataFrame(rows).write_csv().encode(), mtime=0))


def write_eicu_twin(root: Path, spec: TwinSpec) -> None:
    """Write ``patient.csv`` and ``lab.csv``; equal specs give equal bytes."""
    patients: list[dict[str, str]] = []
    events: list[dict[str, str]] = []
    num_hospitals = max(2, spec.num_patients // 8)
    sizes = 1 / np.arange(1, num_hospitals + 1)
    for stay in _stays(spec):
        rng = numpy_rng(spec.seed, "eicu", stay.number)
        hospital = int(numpy_rng(spec.seed, "eicu hospital", stay.patient).choice(num_hospitals, p=sizes / sizes.sum()))
        unit = str(200_000 + 2 * stay.number)
        row = {
            "patientunitstayid": unit,
            "patienthealthsystemstayid": str(500_000 + stay.number),
            "gender": "Female" if stay.female else "Male",
            "age": "> 89" if stay.age > 89 else str(stay.age),
            "hospitalid": str(50 + hospital),
            "hospitaldischargestatus": "" if rng.random() < 0.02 else "Expired" if stay.died else "Alive",
            "unitvisitnumber": "1",
            "uniquepid": f"002-{stay.patient:05d}",
        }
        patients.append(row)
        if rng.random() < 0.1:
            patients.append({**row, "patientunitstayid": str(int(unit) + 1), "unitvisitnumber": "2"})
        for variable, hour, value in _measured(stay):
            if variable in EICU_NAMES:
                name, measure, factor = EICU_NAMES[variable]
                offset = str(60 * hour + int(rng.integers(60)))
                cells = {"labname": name, "labresult": f"{factor * value:.4g}", "labmeasurenamesystem": measure}
                events.append({"patientunitstayid": unit, "labresultoffset": offset, **cells})
    pl.DataFrame(patients).write_csv(root / "patient.csv")
    pl.DataFrame(events).write_csv(root / "lab.csv")


def _stays(spec: TwinSpec) -> Iterator[Stay]:
    number = 0
    for block in blocks(spec, "long", spec.num_patients):
        for place in range(len(block.stay_id)):
            yield Stay(
                number,
                number - (number % RETURNS_EVERY == RETURNS_EVERY - 1),
                int(block.body["age"][place]),
                bool(block.stays.female[place]),
                bool(block.stays.died[place]),
                {name: block.series[name][place, :HOURS_WRITTEN] for name in LABS},
            )
            number += 1


def _measured(stay: Stay) -> Iterator[tuple[str, int, float]]:
    """Yield variable, hour and value of every measurement."""
    for name, values in stay.labs.items():
        for hour in np.flatnonzero(np.isfinite(values)):
            yield name, int(hour), float(values[hour])
