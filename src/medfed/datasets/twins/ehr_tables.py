"""Patients with a hospital record, drawn, and the tables that EHRXQA's scripts build of them; names are ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

DIAGNOSES = ("pneumonia", "heart failure", "diabetes", "anemia")
DRUGS = ("heparin", "insulin", "furosemide", "aspirin")
LABS = {"glucose": (110, 25, "mg/dl"), "sodium": (139, 4, "meq/l")}
"""Laboratory item → mean, spread and unit."""

SHARE_DIAGNOSED, SHARE_TWO_DRUGS = 0.4, 0.3
START = datetime(2103, 1, 1)


@dataclass(frozen=True)
class Patient:
    """One patient.

    Attributes:
        subject, study: ids; image: the X-ray's name.
        visits: admission times, oldest first; the rest happens during the last one.
        diagnoses: names; drugs: those prescribed, the last one first.
        labs: item → last value.
        view: of the X-ray.
    """

    subject: int
    study: int
    image: str
    gender: str
    age: int
    visits: tuple[datetime, ...]
    diagnoses: tuple[str, ...]
    drugs: tuple[str, ...]
    labs: dict[str, int]
    view: str

    @classmethod
    def draw(cls, number: int, gender: str, age: int, view: str, rng: np.random.Generator) -> Patient:
        """Draw the record of patient ``number``."""
        first = START + timedelta(hours=int(rng.integers(0, 24 * 365)))
        visits = tuple(first + timedelta(days=int(120 * visit)) for visit in range(int(rng.integers(1, 4))))
        drugs = rng.choice(DRUGS, 1 + int(rng.random() < SHARE_TWO_DRUGS), replace=False)
        return cls(
            subject=10_000_000 + 37 * number,
            study=50_000_000 + 53 * number,
            image="-".join(f"{part:08x}" for part in rng.integers(2**32, size=5).tolist()),
            gender=gender.lower(),
            age=age,
            visits=visits,
            diagnoses=tuple(name for name in DIAGNOSES if rng.random() < SHARE_DIAGNOSED),
            drugs=tuple(str(drug) for drug in drugs),
            labs={name: round(rng.normal(mean, spread)) for name, (mean, spread, _) in LABS.items()},
            view=view,
        )

    def at(self, hours: int) -> str:
        """Return the time so many hours into the last visit."""
        return f"{self.visits[-1] + timedelta(hours=hours):%Y-%m-%d %H:%M:%S}"


def write_tables(folder: Path, patients: Sequence[Patient]) -> None:
    """Write the tables of ``patients`` as CSV files into ``folder``."""
    folder.mkdir(parents=True)
    for name, (columns, rows) in _tables(patients).items():
        numbered = [(number, *row) for number, row in enumerate(rows)]
        pl.DataFrame(numbered, schema=["row_id", *columns], orient="row").write_csv(folder / f"{name}.csv")


Table = tuple[list[str], list[tuple[object, ...]]]


def _tables(patients: Sequence[Patient]) -> dict[str, Table]:
    codes = {name: f"D{number:03d}" for number, name in enumerate(DIAGNOSES)}
    items = {name: 50_900 + number for number, name in enumerate(LABS)}
    visit = {patient.subject: 20_000_000 + 10 * number for number, patient in enumerate(patients)}
    event = ["subject_id", "hadm_id"]
    return {
        "patients": (["subject_id", "gender"], [(who.subject, who.gender) for who in patients]),
        "admissions": (
            [*event, "admittime", "dischtime", "admission_type", "admission_location", "discharge_location", "age"],
            [_admission(who, visit[who.subject], number) for who in patients for number in range(len(who.visits))],
        ),
        "d_icd_diagnoses": (["icd_code", "long_title"], [(code, name) for name, code in codes.items()]),
        "diagnoses_icd": (
            [*event, "icd_code", "charttime"],
            [(who.subject, visit[who.subject], codes[name], who.at(3)) for who in patients for name in who.diagnoses],
        ),
        "d_labitems": (["itemid", "label"], [(item, name) for name, item in items.items()]),
        "labevents": (
            [*event, "itemid", "charttime", "valuenum", "valueuom"],
            [
                (who.subject, visit[who.subject], items[name], who.at(5), float(value), LABS[name][2])
                for who in patients
                for name, value in who.labs.items()
            ],
        ),
        "prescriptions": (
            [*event, "starttime", "stoptime", "drug", "dose_val_rx", "dose_unit_rx", "route"],
            [
                (
                    who.subject,
                    visit[who.subject],
                    who.at(52 - 26 * earlier),
                    who.at(76 - 26 * earlier),
                    drug,
                    "1",
                    "dose",
                    "iv",
                )
                for who in patients
                for earlier, drug in enumerate(who.drugs)
            ],
        ),
        "tb_cxr": (
            [*event, "study_id", "image_id", "viewposition", "studydatetime"],
            [(who.subject, visit[who.subject], who.study, who.image, who.view, who.at(8)) for who in patients],
        ),
    }


def _admission(who: Patient, first: int, number: int) -> tuple[object, ...]:
    admitted = who.visits[number]
    times = f"{admitted:%Y-%m-%d %H:%M:%S}", f"{admitted + timedelta(days=4):%Y-%m-%d %H:%M:%S}"
    return (who.subject, first - number, *times, "urgent", "emergency room", "home", who.age)
