"""EHRXQA, questions about chest X-rays and hospital records of MIMIC patients (Med-MMFL's generative VQA).

Native layout, as the authors' scripts leave it: ``dataset/mimic_iv_cxr/{train,valid,test}.json`` or ``dataset/*.json``,
and ``database/mimic_iv_cxr/{train,test}/`` with tables as CSV or SQLite. Images are MIMIC-CXR-JPG's
``files/p10/p10000032/s50414267/<image>.jpg``, in a ``mimic-cxr-jpg`` folder there or next to it.
Source: Bae et al. 2023, EHRXQA: a multi-modal question answering dataset for electronic health records with chest X-ray
images. The fields were checked against the authors' documentation and scripts; no file of the release was at hand.

An answer is the result of its SQL query, in one canonical text. A list is joined by commas, texts in alphabetical
order; numbers lose superfluous zeros; an empty result is "none". The release answers a yes/no question by 1 or 0, which
becomes yes or no here.

Deviation: questions on all patients at once ("count the patients who …") are left out: no model here reads a database.
Deviation: the model sees one image: that of the study that the question names, else the patient's latest. Of the
    record it sees the lines nearest to the question.
Deviation: ids of patients and studies are cut out of the question that the model reads; they carry no content.
Deviation: train and valid have questions about the same patients. A tenth of those, by a hash of their id, is the
    development split with all their questions, the others are train.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from medfed.core.errors import DataError
from medfed.datasets.base import COMPLETE, Dataset, Record, require
from medfed.datasets.ehr_records import people_file, read_records, read_table, record_text
from medfed.datasets.images import load_image
from medfed.datasets.questions import Entry, read_entries, text_bytes

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
"""Possible folders of the images, below the root; the first that exists is taken."""
STUDIES = ("study_id", "study_id1")
VISUAL = re.compile(r"(?i)\bfunc_vqa\s*\(")
TABLES = re.compile(r"(?i)\b(patients|admissions|\w+_icd|\w+events|prescriptions|cost|icustays|transfers)\b")
IDENTIFIER = re.compile(r"\s*\b\d{6,}\b")
NONE = "none"
WHETHER = re.compile(r"(?:^|, )(?:has_verb|did_verb|is_verb|is|are|has|did|was|were)\b")
"""Beginning of the interrogative part of a yes/no question's template."""
REBUILD = "build the database with the authors' scripts, for the split the question is from"


class Studies(NamedTuple):
    """The X-rays of one database: a row of ``tb_cxr`` by study, and each patient's latest."""

    by_study: Mapping[str, Mapping[str, str]]
    latest: Mapping[str, Mapping[str, str]]


class Ehrxqa(Dataset):
    """EHRXQA's questions about a single patient; patients are MIMIC's, under MIMIC's ids."""

    name = "ehrxqa"
    modalities = ("image", "ehr", "question")
    targets = ("answer",)
    marker = f"{DATABASE}/train"
    simulator = "medfed.twins.ehrxqa:write_ehrxqa_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """One row per question about a single patient; ``scope`` is ``image``, ``table`` or ``joint``."""
        studies = {name: _studies(root / DATABASE / name) for name in sorted(set(FILES.values()))}
        people = {name: str(people_file(root / DATABASE / name).relative_to(root)) for name in studies}
        images = next((hit for pattern in IMAGES for hit in sorted(root.glob(pattern))), root / IMAGES[0])
        rows: list[dict[str, object]] = []
        for name, database in FILES.items():
            for entry in read_entries(_file(root, name)):
                if (row := _row(entry, studies[database])) is not None:
                    film = [_image(images, row, root)] if row["image_id"] else []
                    split = _split(database, str(row["subject"]))
                    rows.append({**row, "files": [*film, people[database]], "split": split, "database": database})
        require(rows, "no question is about a single patient", root, COMPLETE)
        return pl.DataFrame(rows, infer_schema_length=None).with_columns(site=pl.lit(None, pl.Utf8))

    def load(self, root: Path, record: Record) -> dict[str, np.ndarray]:
        """Return the question and the patient's record as UTF-8 bytes, and the image (grey in [0, 1]) if needed."""
        folder, asks = root / DATABASE / record["database"], f"example {record['example']!r} asks about"
        lines = read_records(folder).get(record["subject"], ())
        require(lines, f"{asks} a patient that the tables lack", folder / "patients.csv", REBUILD)
        text = {"question": text_bytes(record["question"]), "ehr": text_bytes(record_text(lines, record["question"]))}
        if record["scope"] == "table":
            return text
        known = record["image_id"] is not None
        require(known, f"{asks} an X-ray that tb_cxr lacks", folder / "tb_cxr.csv", REBUILD)
        return {**text, "image": load_image(root, record, f"{DATABASE}/{record['database']}/tb_cxr.csv")}


def _file(root: Path, name: str) -> Path:
    hits = sorted(root.glob(f"dataset/mimic_iv_cxr/{name}.json")) + sorted(root.glob(f"dataset/{name}.json"))
    return hits[0] if hits else root / "dataset" / "mimic_iv_cxr" / f"{name}.json"


def _split(database: str, subject: str) -> str:
    if database == "test":
        return "test"
    return "development" if int(hashlib.sha256(subject.encode()).hexdigest(), 16) % 10 == 0 else "train"


def _studies(folder: Path) -> Studies:
    table = read_table(folder, "tb_cxr", ("subject_id", "study_id", "image_id", "studydatetime"))
    if table is None:
        hint = "build the database: build_dataset.sh"
        raise DataError("the table of X-rays is missing", where=folder / "tb_cxr.csv", hint=hint)
    rows = table.drop_nulls().sort("studydatetime", maintain_order=True).rows(named=True)
    return Studies({row["study_id"]: row for row in rows}, {row["subject_id"]: row for row in rows})


def _row(entry: Entry, studies: Studies) -> dict[str, object] | None:
    """Return a question's columns, or None if it is about no single patient."""
    value = entry.fields.get("value")
    if not isinstance(value, Mapping):
        kind = "is missing" if value is None else f"is of type {type(value).__name__}, not an object"
        raise entry.error("value", kind)
    study = next((_id(entry, value, key) for key in STUDIES if key in value), None)
    if "patient_id" in value:
        subject = _id(entry, value, "patient_id")
    elif study is not None:
        subject = studies.by_study.get(study, {}).get("subject_id", f"of-study-{study}")
    else:
        return None
    query, question, answer = entry.text("query"), entry.text("question"), answer_text(entry)
    visual = bool(VISUAL.search(query))
    film = (studies.by_study.get(study) if study else studies.latest.get(subject)) if visual else None
    return {
        "example": f"ehrxqa:{entry.path.stem}:{entry.number}",
        "patient": f"mimic:{subject}",
        "subject": subject,
        "study": film["study_id"] if film else None,
        "image_id": film["image_id"] if film else None,
        "scope": ("joint" if TABLES.search(query) else "image") if visual else "table",
        "question": " ".join(IDENTIFIER.sub("", question).split()),
        "answer": answer,
        "answer_type": answer_type(answer),
    }


def _id(entry: Entry, value: Mapping[str, object], key: str) -> str:
    given = value[key]
    if isinstance(given, int | str) and str(given).isdigit():
        return str(given)
    raise entry.error(f"value.{key}", f"is of type {type(given).__name__}, not a whole number")


def _image(images: Path, row: Mapping[str, object], root: Path) -> str:
    subject = str(row["subject"])
    path = images / f"p{subject[:2]}" / f"p{subject}" / f"s{row['study']}" / f"{row['image_id']}.jpg"
    return str(path.relative_to(root))


def answer_text(entry: Entry) -> str:
    """Return the answer of a question as text; raise DataError if it is not a list of texts and numbers."""
    if "answer" not in entry.fields:
        hint = "the released question files have no answers: run the authors' build_dataset.sh"
        raise entry.error("answer", "is missing", hint)
    answer = entry.fields["answer"]
    values = answer if isinstance(answer, list) else [answer]
    whether = bool(WHETHER.search(entry.text("q_tag").lower()))
    parts = [_part(entry, value, whether) for value in values if value is not None]
    texts = sorted(dict.fromkeys(parts)) if any(isinstance(value, str) for value in values) else parts
    return ", ".join(texts) or NONE


def answer_type(answer: str) -> str:
    """Return ``yes``, ``no``, ``none``, ``number`` or ``text``."""
    if answer in ("yes", "no", NONE):
        return answer
    return "number" if re.fullmatch(r"-?\d+(\.\d+)?", answer) else "text"


def _part(entry: Entry, value: object, whether: bool) -> str:
    if isinstance(value, bool) or (whether and value in (0, 1)):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{round(value, 6):.6f}".rstrip("0").rstrip(".")
    if isinstance(value, int | str):
        return " ".join(str(value).lower().split())
    raise entry.error("answer", f"holds a value of type {type(value).__name__}; texts and numbers are allowed")


DATASETS: tuple[Dataset, ...] = (Ehrxqa(),)
