"""EHRXQA, questions about chest X-rays and hospital records of MIMIC patients (Med-MMFL's generative VQA).

Native layout, as the authors' scripts leave it: ``dataset/mimic_iv_cxr/{train,valid,test}.json`` or ``dataset/*.json``
beside ``database/mimic_iv_cxr/{train,test}/`` with tables as CSV or SQLite; images are MIMIC-CXR-JPG's
``files/p10/p10000032/s50414267/<image>.jpg``, in a ``mimic-cxr-jpg`` folder there or beside it.
Source: Bae et al. 2023, EHRXQA: a multi-modal question answering dataset for electronic health records with chest X-ray
images. The fields were checked against the authors' documentation and scripts; no file of the release was at hand.

Deviation: questions on all patients at once ("count the patients who …") are left out: no model here reads a database.
Deviation: the model sees one image, that of the study that the question names, else the patient's latest; and of the
    record the lines nearest to the question.
Deviation: ids of patients and studies are cut out of the question that the model reads; they name, and say nothing.
Deviation: train and valid ask about the same patients. A tenth of those, by a hash of their id, is the development
    split with all their questions, the others are train.

EHRXQA's answers as short texts: what its SQL returned, in one canonical form.

A list is joined by commas, texts in alphabetical order; numbers lose superfluous zeros; nothing found is "none". A
question of whether something is so is answered by 1 or 0 in the release, and by yes or no here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import polars as pl

from medfed.core.errors import DataError
from medfed.datasets.base import Card, Dataset, Record
from medfed.datasets.ehr_records import people_file, read_records, read_table, record_text
from medfed.datasets.formats import Row, read_rows, text
from medfed.datasets.images import load_image

FILES = {"train": "train", "valid": "train", "test": "test"}
"""Official file → the database its patients are in, which is also their split."""
DATABASE = "database/mimic_iv_cxr"
IMAGES = (
    "mimic-cxr-jpg*/files",
    "mimic-cxr-jpg*/*/files",
    "physionet.org/files/mimic-cxr-jpg/*/files",
    "../mimic-cxr-jpg*/files",
    "../mimic-cxr-jpg*/*/files",
)
"""Where images may be, below the root; the first that exists is taken."""
STUDIES = ("study_id", "study_id1")
VISUAL = re.compile(r"\bfunc_vqa\s*\(", re.IGNORECASE)
TABLES = re.compile(
    r"\b(patients|admissions|\w+_icd|labevents|prescriptions|cost|\w+events|icustays|transfers)\b", re.IGNORECASE
)

IDENTIFIER = re.compile(r"\s*\b\d{6,}\b")


class Studies(NamedTuple):
    """The X-rays of one database: a row of ``tb_cxr`` by study, and each patient's latest."""

    by_study: Mapping[str, Mapping[str, str]]
    latest: Mapping[str, Mapping[str, str]]


class Ehrxqa(Dataset):
    """EHRXQA's questions about a single patient; patients are MIMIC's, under MIMIC's ids."""

    name: ClassVar[str] = "ehrxqa"
    card: ClassVar[Card] = Card(
        title="EHRXQA",
        version="1.0.0, on MIMIC-IV 2.2 and MIMIC-CXR-JPG 2.0.0",
        licence="PhysioNet Credentialed Health Data License 1.5.0",
        access="https://physionet.org/content/ehrxqa/1.0.0/",
        citation="Bae et al., NeurIPS Datasets and Benchmarks (2023), doi:10.13026/bp5y-qt70",
        sites=("Beth Israel Deaconess Medical Center",),
        note="Run the authors' build_dataset.sh for answers and database; put MIMIC-CXR-JPG beside it, as "
        "mimic-cxr-jpg. A patient keeps MIMIC's id (mimic:SUBJECT_ID) over all datasets drawn from it.",
    )
    modalities: ClassVar[tuple[str, ...]] = ("image", "ehr", "question")
    targets: ClassVar[tuple[str, ...]] = ("answer",)
    marker: ClassVar[str] = f"{DATABASE}/train"
    simulator: ClassVar[str] = "medfed.twins.ehrxqa:write_ehrxqa_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """One row per question about a single patient; ``scope`` is ``image``, ``table`` or ``joint``.

        Raises:
            DataError: a file is missing or malformed; the message names file, record and field.
        """
        studies = {name: _studies(root / DATABASE / name) for name in sorted(set(FILES.values()))}
        people = {name: str(people_file(root / DATABASE / name).relative_to(root)) for name in studies}
        images = next((hit for pattern in IMAGES for hit in sorted(root.glob(pattern))), root / IMAGES[0])
        rows: list[dict[str, object]] = []
        for name, database in FILES.items():
            path = _file(root, name)
            for number, row in enumerate(read_rows(path)):
                if (indexed := _indexed(row, path, number, studies[database])) is not None:
                    film = [_image(images, indexed, root)] if indexed["image_id"] else []
                    indexed["files"] = [*film, people[database]]
                    rows.append({**indexed, "split": _split(database, str(indexed["subject"])), "database": database})
        if not rows:
            raise DataError("no question is about a single patient", where=root, hint="download the complete dataset")
        return pl.DataFrame(rows, infer_schema_length=None).with_columns(site=pl.lit(None, pl.Utf8))

    def load(self, root: Path, record: Record) -> dict[str, np.ndarray]:
        """Return the question and the patient's record as UTF-8 bytes, and the image (grey in [0, 1]) if one is needed.

        Raises:
            DataError: the image is missing or cannot be decoded, or the patient is in no table.
        """
        folder = root / DATABASE / record["database"]
        lines = read_records(folder).get(record["subject"])
        if lines is None:
            raise DataError(
                f"example {record['example']!r} asks about a patient that the tables lack",
                where=folder / "patients.csv",
                hint="build the database with the authors' scripts, for the split the question is from",
            )
        found = {"question": _bytes(record["question"]), "ehr": _bytes(record_text(lines, record["question"]))}
        if record["scope"] != "table":
            if record["image_id"] is None:
                raise DataError(
                    f"example {record['example']!r} asks about an X-ray that tb_cxr lacks",
                    where=folder / "tb_cxr.csv",
                    hint="build the database with the authors' scripts, for the split the question is from",
                )
            found["image"] = load_image(root, record, f"{DATABASE}/{record['database']}/tb_cxr.csv")
        return found


def _file(root: Path, name: str) -> Path:
    hits = sorted(root.glob(f"dataset/mimic_iv_cxr/{name}.json")) + sorted(root.glob(f"dataset/{name}.json"))
    return hits[0] if hits else root / "dataset" / "mimic_iv_cxr" / f"{name}.json"


def _split(database: str, subject: str) -> str:
    if database == "test":
        return "test"
    return "development" if int(hashlib.sha256(subject.encode()).hexdigest(), 16) % 10 == 0 else "train"


def _studies(folder: Path) -> Studies:
    columns = ("subject_id", "study_id", "image_id", "studydatetime")
    table = read_table(folder, "tb_cxr", columns)
    if table is None:
        raise DataError(
            "the table of X-rays is missing", where=folder / "tb_cxr.csv", hint="build the database: build_dataset.sh"
        )
    rows = table.drop_nulls().sort("studydatetime", maintain_order=True).rows(named=True)
    return Studies({row["study_id"]: row for row in rows}, {row["subject_id"]: row for row in rows})


def _indexed(row: Row, path: Path, number: int, studies: Studies) -> dict[str, object] | None:
    """Return a question's columns, or None if it is about no single patient."""
    value = row.get("value")
    if not isinstance(value, Mapping):
        what = "is missing" if value is None else f"is of type {type(value).__name__}, not an object"
        raise DataError(f"record {number}: field 'value' {what}", where=path, hint="correct or remove the record")
    study = next((_id(value[key], key, path, number) for key in STUDIES if key in value), None)
    if "patient_id" in value:
        subject = _id(value["patient_id"], "patient_id", path, number)
    elif study is not None:
        subject = studies.by_study.get(study, {}).get("subject_id", f"of-study-{study}")
    else:
        return None
    query, question = text(row, "query", path, number), text(row, "question", path, number)
    visual = bool(VISUAL.search(query))
    seen = (studies.by_study.get(study) if study else studies.latest.get(subject)) if visual else None
    answer = answer_text(row, path, number)
    return {
        "example": f"ehrxqa:{path.stem}:{number}",
        "patient": f"mimic:{subject}",
        "subject": subject,
        "study": seen["study_id"] if seen else None,
        "image_id": seen["image_id"] if seen else None,
        "scope": ("joint" if TABLES.search(query) else "image") if visual else "table",
        "question": " ".join(IDENTIFIER.sub("", question).split()),
        "answer": answer,
        "answer_type": answer_type(answer),
    }


def _id(value: object, key: str, path: Path, number: int) -> str:
    if isinstance(value, int | str) and str(value).isdigit():
        return str(value)
    raise DataError(
        f"record {number}: field 'value.{key}' is of type {type(value).__name__}, not a whole number",
        where=path,
        hint="correct or remove the record",
    )


def _image(images: Path, row: Mapping[str, object], root: Path) -> str:
    subject, study = str(row["subject"]), str(row["study"])
    path = images / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{row['image_id']}.jpg"
    return str(path.relative_to(root))


def _bytes(words: str) -> np.ndarray:
    return np.frombuffer(words.encode(), np.uint8)


DATASETS: tuple[Dataset, ...] = (Ehrxqa(),)
NONE = "none"
WHETHER = re.compile(r"(?:^|, )(?:has_verb|did_verb|is_verb|is|are|has|did|was|were)\b")
"""How the part of a question's template that asks begins, if it asks whether."""


def answer_text(row: Row, path: Path, number: int) -> str:
    """Return the answer of record ``number`` as text.

    Raises:
        DataError: it is missing, or not a list of texts and numbers; the message names file, record and field.
    """
    if "answer" not in row:
        raise DataError(
            f"record {number}: field 'answer' is missing",
            where=path,
            hint="the released question files have no answers: run the authors' build_dataset.sh",
        )
    values = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    whether = bool(WHETHER.search(text(row, "q_tag", path, number).lower()))
    parts = [_part(value, whether, path, number) for value in values if value is not None]
    texts = sorted(dict.fromkeys(parts)) if any(isinstance(value, str) for value in values) else parts
    return ", ".join(texts) or NONE


def answer_type(answer: str) -> str:
    """Return ``yes``, ``no``, ``none``, ``number`` or ``text``."""
    if answer in ("yes", "no", NONE):
        return answer
    return "number" if re.fullmatch(r"-?\d+(\.\d+)?", answer) else "text"


def _part(value: object, whether: bool, path: Path, number: int) -> str:
    if isinstance(value, bool) or (whether and value in (0, 1)):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{round(value, 6):.6f}".rstrip("0").rstrip(".")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return " ".join(value.lower().split())
    raise DataError(
        f"record {number}: field 'answer' holds a value of type {type(value).__name__}; texts and numbers are allowed",
        where=path,
        hint="correct or remove the record",
    )
