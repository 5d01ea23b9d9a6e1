"""The synthetic twin of EHRXQA: chest phantoms with a hospital record, and true questions about either or both.

Records have the tables that EHRXQA's scripts build; names are ours. Every patient has one question each about the
image, the tables, and both. About as many answers are yes as no. The image alone, the record alone or the question
alone leave some of them open.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from medfed.core.rng import numpy_rng
from medfed.datasets.images import write_grey
from medfed.study.data import TwinSpec
from medfed.twins.chest_anatomy import Findings
from medfed.twins.chest_cohorts import Cohort, Film, draw_films

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


ATTRIBUTES = {"effusion": "pleural effusion", "cardiomegaly": "enlarged heart"}
"""Finding of the phantom → its word."""
SHARE_TEST, SHARE_VALID = 0.2, 0.15
"""Of patients: those of the test database; of the other questions: those in the file valid."""
DATABASE, DATASET = "database/mimic_iv_cxr", "dataset/mimic_iv_cxr"
IMAGES = "mimic-cxr-jpg/files"
DIAGNOSED = "select count(*) > 0 from diagnoses_icd where subject_id = {patient_id}"
LATEST = "( select tb_cxr.study_id from tb_cxr where tb_cxr.subject_id = {patient_id} )"


def _examined(rng: np.random.Generator) -> Findings:
    """Draw a patient's findings: each in half of the patients and plain, since a question set is small."""
    effusion, heart = (float(rng.uniform(0.6, 1.0)) * (rng.random() < 0.5) for _ in range(2))
    return Findings(effusion=effusion, cardiomegaly=heart)


EHRXQA = Cohort("ehrxqa", _examined)


class Question(NamedTuple):
    """A question as a template, what fills it, the query, and what the query returns."""

    q_tag: str
    value: Mapping[str, object]
    query: str
    answer: Sequence[object]


def write_ehrxqa_twin(root: Path, spec: TwinSpec) -> None:
    """Write question files, databases and images under ``root``."""
    people: dict[str, list[Patient]] = {"train": [], "test": []}
    questions: dict[str, list[dict[str, object]]] = {"train": [], "valid": [], "test": []}
    for film in draw_films(EHRXQA, spec):
        rng = numpy_rng(spec.seed, "ehrxqa", film.patient)
        patient = Patient.draw(film.patient, film.sex, film.age, film.view, rng)
        database = "test" if film.patient == 2 or rng.random() < SHARE_TEST else "train"
        people[database].append(patient)
        _write_image(root / IMAGES, patient, film)
        for question in (_visual(film, patient, rng), _tabular(patient, rng), _joint(film, patient, rng)):
            file = "valid" if database == "train" and rng.random() < SHARE_VALID else database
            questions[file].append(_row(question, file, len(questions[file])))
    for database, patients in people.items():
        write_tables(root / DATABASE / database, patients)
    (root / DATASET).mkdir(parents=True)
    for file, rows in questions.items():
        (root / DATASET / f"{file}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _write_image(folder: Path, patient: Patient, film: Film) -> None:
    name = f"p{patient.subject}"
    path = folder / name[:3] / name / f"s{patient.study}" / f"{patient.image}.jpg"
    path.parent.mkdir(parents=True)
    write_grey(path, film.grey)


def _visual(film: Film, patient: Patient, rng: np.random.Generator) -> Question:
    finding = _finding(film, rng)
    answer = [int(getattr(film.findings, finding) > 0)]
    value: dict[str, object] = {"patient_id": patient.subject, "attribute": ATTRIBUTES[finding]}
    start = "given the last study of patient {patient_id}"
    if rng.random() < 0.3:
        value = {"study_id": patient.study, "attribute": ATTRIBUTES[finding]}
        start = "given the study {study_id}"
    return Question(f"{start}, is there {{attribute}}?", value, _looks(value), answer)


def _joint(film: Film, patient: Patient, rng: np.random.Generator) -> Question:
    finding, name = _finding(film, rng, 0.7), _diagnosis(patient, rng, 0.7)
    both = name in patient.diagnoses and getattr(film.findings, finding) > 0
    value: dict[str, object] = {
        "patient_id": patient.subject,
        "diagnosis_name": name,
        "attribute": ATTRIBUTES[finding],
    }
    tag = "has_verb patient {patient_id} been diagnosed with {diagnosis_name} and also had a study with {attribute}?"
    return Question(tag, value, f"{DIAGNOSED} and {_looks(value)}", [int(both)])


def _tabular(patient: Patient, rng: np.random.Generator) -> Question:
    who = {"patient_id": patient.subject}
    name, lab = _diagnosis(patient, rng), str(rng.choice(list(LABS)))
    kinds = [
        Question(
            "has_verb patient {patient_id} been diagnosed with {diagnosis_name}?",
            {**who, "diagnosis_name": name},
            DIAGNOSED,
            [int(name in patient.diagnoses)],
        ),
        Question(
            "what was the name of the drug that patient {patient_id} was last prescribed?",
            who,
            "select drug from prescriptions where subject_id = {patient_id}",
            [patient.drugs[0]],
        ),
        Question(
            "what is_verb the gender of patient {patient_id}?",
            who,
            "select gender from patients where subject_id = {patient_id}",
            [patient.gender],
        ),
        Question(
            "count the number of hospital admissions of patient {patient_id}.",
            who,
            "select count(*) from admissions where subject_id = {patient_id}",
            [len(patient.visits)],
        ),
        Question(
            "what was the last value of {lab_name} of patient {patient_id}?",
            {**who, "lab_name": lab},
            "select valuenum from labevents where subject_id = {patient_id}",
            [float(patient.labs[lab])],
        ),
    ]
    return kinds[int(rng.choice(len(kinds), p=(0.3, 0.3, 0.15, 0.15, 0.1)))]


def _looks(value: Mapping[str, object]) -> str:
    study = value.get("study_id", LATEST.format(**value) if "patient_id" in value else "")
    return f'func_vqa("is there {value["attribute"]}?", {study}) = true'


def _finding(film: Film, rng: np.random.Generator, share: float = 0.0) -> str:
    """Return a finding to ask about, in ``share`` of the questions one that the film has."""
    there = [name for name in ATTRIBUTES if getattr(film.findings, name) > 0]
    return str(rng.choice(there if there and rng.random() < share else list(ATTRIBUTES)))


def _diagnosis(patient: Patient, rng: np.random.Generator, share: float = 0.3) -> str:
    """Return a diagnosis to ask about, in ``share`` of the questions one that the patient has."""
    likely = patient.diagnoses and rng.random() < share
    return str(rng.choice(patient.diagnoses if likely else DIAGNOSES))


def _row(question: Question, file: str, number: int) -> dict[str, object]:
    template = question.q_tag.replace("has_verb", "has").replace("is_verb", "is").format(**question.value)
    return {
        "db_id": "mimic_iv_cxr",
        "split": file,
        "id": number,
        "question": template,
        "template": template,
        "query": question.query.format(**question.value),
        "value": question.value,
        "q_tag": question.q_tag,
        "t_tag": ["", "", "", "", ""],
        "o_tag": {},
        "v_tag": {"object": [], "category": [], "attribute": [question.value.get("attribute", "")]},
        "tag": question.q_tag,
        "para_type": "machine",
        "is_impossible": False,
        "answer": question.answer,
    }
