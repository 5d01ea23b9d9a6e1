"""EHRXQA, questions about chest X-rays and hospital records of MIMIC patients (Med-MMFL's generative VQA).

Native layout, as the authors' scripts leave it: ``dataset/mimic_iv_cxr/{train,valid,test}.json`` or ``dataset/*.json``,
and ``database/mimic_iv_cxr/{train,test}/`` with tables as CSV or SQLite. Images are MIMIC-CXR-JPG's
``files/p10/p10000032/s50414267/<image>.jpg``, in a ``mimic-cxr-jpg`` folder there or next to it.
Source: Bae et al. 2023, EHRXQA: a multi-modal question answering dataset for electronic health records with chest X-ray
images. The fields were checked against the authors' documentation and scripts; no file of the release was at hand.

An answer is the result of its SQL query, in one canonical text. A list is joined by commas, texts in alphabetical
order; numbers lose superfluous zeros; an empty result is "none". The release answers a yes/no question by 1 or 0, which
becomes yes or no here.

A patient's record is text: lines of the tables (columns in either case), each a kind, a name, a value and a date. An
absent table adds none. Lines that share words with the question come first, then the newest. The text is cut to a
length: a patient may have thousands.

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
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import polars as pl

from medfed.core.errors import DataError
from medfed.datasets.base import COMPLETE, Dataset, Raw, Record, require
from medfed.datasets.images import load_image
from medfed.datasets.questions import Entry, read_entries, text_bytes
from medfed.datasets.tables import read_csv, require_columns

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
SQLITE = "mimic_iv_cxr.db"
MOST_CHARACTERS = 2000
STEM = 4
"""Words are compared by their first so many characters."""
# fmt: off
COMMON = frozenset({
    "a", "an", "and", "any", "been", "did", "for", "from", "had", "has", "have", "in", "is", "of", "on", "or",
    "patient", "the", "time", "to", "was", "what", "with",
})
# fmt: on
"""Words of a question that carry no content."""
REBUILD = "build the database with the authors' scripts, for the split the question is from"


class Studies(NamedTuple):
    """The X-rays of one database: a row of ``tb_cxr`` by study, and each patient's latest."""

    by_study: Mapping[str, Mapping[str, str]]
    latest: Mapping[str, Mapping[str, str]]


class Line(NamedTuple):
    """One entry of a record: its ISO date ("" if it has none), and its words."""

    date: str
    words: str


class Source(NamedTuple):
    """Origin of a kind of line: its first word, the table with its column of time, and the columns that follow.

    ``code`` and ``names`` are the code column and the dictionary table that spells it out as ``label``, if any.
    """

    kind: str
    table: str
    time: str
    words: tuple[str, ...]
    code: str = ""
    names: str = ""
    label: str = ""


SOURCES = (
    Source("admission", "admissions", "admittime", ("admission_type", "admission_location", "age")),
    Source("discharge", "admissions", "dischtime", ("discharge_location",)),
    Source("diagnosis", "diagnoses_icd", "charttime", (), "icd_code", "d_icd_diagnoses", "long_title"),
    Source("procedure", "procedures_icd", "charttime", (), "icd_code", "d_icd_procedures", "long_title"),
    Source("lab", "labevents", "charttime", ("valuenum", "valueuom"), "itemid", "d_labitems", "label"),
    Source("prescription", "prescriptions", "starttime", ("drug", "dose_val_rx", "dose_unit_rx", "route")),
    Source("culture", "microbiologyevents", "charttime", ("spec_type_desc", "test_name", "org_name")),
    Source("x-ray", "tb_cxr", "studydatetime", ("viewposition",)),
)


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
        people = {name: str(_file_of(root / DATABASE / name, "patients").relative_to(root)) for name in studies}
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

    def load(self, root: Path, record: Record) -> Raw:
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


def read_records(folder: Path) -> Mapping[str, tuple[Line, ...]]:
    """Return patient (``subject_id``) → lines, newest first, of the tables in ``folder``; a folder is read once.

    Raises DataError if a table is not what its name says, lacks a column, or there is none at all.
    """
    stamps = tuple(sorted((path.name, path.stat().st_mtime_ns) for path in folder.glob("*") if path.is_file()))
    return _records(folder, stamps)


def record_text(lines: tuple[Line, ...], question: str) -> str:
    """Return the lines as text, those with most of the question's words first, at most :data:`MOST_CHARACTERS`."""
    content = _content(question)
    ranked = sorted(lines, key=lambda line: -len(_content(line.words) & content))
    return "; ".join(f"{line.words} {line.date}".strip() for line in ranked)[:MOST_CHARACTERS]


def _file_of(folder: Path, table: str) -> Path:
    csv = folder / f"{table}.csv"
    return csv if csv.is_file() else folder / SQLITE


def read_table(folder: Path, name: str, columns: tuple[str, ...]) -> pl.DataFrame | None:
    """Return ``columns`` of a table as lower-case text, or None if the folder lacks it.

    Raises DataError if the table cannot be read, or lacks a column.
    """
    path = _file_of(folder, name)
    if not path.is_file():
        return None
    table = read_csv(path, ()) if path.suffix == ".csv" else _from_database(path, name)
    if table is None:
        return None
    table = table.rename({column: column.lower() for column in table.columns})
    require_columns(table, columns, path)
    return table.select(pl.col(column).str.strip_chars().str.to_lowercase() for column in columns)


def _from_database(path: Path, name: str) -> pl.DataFrame | None:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            known = database.execute("select name from sqlite_master where lower(name) = ?", (name,)).fetchone()
            if known is None:
                return None
            cursor = database.execute(f'select * from "{known[0]}"')  # noqa: S608 - a name out of the database
            columns = [column[0] for column in cursor.description]
            rows = [[None if value is None else str(value) for value in row] for row in cursor]
    except sqlite3.Error as error:
        what, hint = f"not a readable SQLite database ({error})", "build it again with EHRXQA's scripts"
        raise DataError(what, where=path, hint=hint) from error
    return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.Utf8), orient="row")


@lru_cache(maxsize=2)
def _records(folder: Path, _stamps: tuple[tuple[str, int], ...]) -> Mapping[str, tuple[Line, ...]]:
    people = read_table(folder, "patients", ("subject_id", "gender"))
    if people is None:
        hint = "build EHRXQA's database with its scripts (build_dataset.sh), or copy it here"
        raise DataError(f"neither patients.csv nor {SQLITE} is there", where=folder, hint=hint)
    parts = [people.select("subject_id", date=pl.lit(""), words=pl.format("gender {}", pl.col("gender")))]
    parts += [part for source in SOURCES if (part := _lines(folder, source)) is not None]
    whole = pl.concat(parts).drop_nulls("subject_id").sort("date", descending=True, maintain_order=True)
    by_subject = whole.rows_by_key("subject_id")
    return {subject: tuple(Line(*entry) for entry in entries) for subject, entries in by_subject.items()}


def _lines(folder: Path, source: Source) -> pl.DataFrame | None:
    """Return columns subject_id, date and words of a source, or None if its table is absent."""
    code = (source.code,) if source.code else ()
    table = read_table(folder, source.table, ("subject_id", source.time, *code, *source.words))
    if table is None:
        return None
    words = source.words
    if source.names and (names := read_table(folder, source.names, (source.code, source.label))) is not None:
        table, words = table.join(names, source.code, "left"), (source.label, *words)
    cells = [pl.col(column).str.replace(r"\.0+$", "") for column in words]  # numbers without superfluous zeros
    line = pl.concat_str([pl.lit(source.kind), *cells], separator=" ", ignore_nulls=True)
    return table.drop_nulls(source.time).select("subject_id", date=pl.col(source.time).str.slice(0, 10), words=line)


@lru_cache(maxsize=100_000)
def _content(text: str) -> frozenset[str]:
    """Return the stems of the words that carry content: prescribed and prescription are one."""
    return frozenset(word[:STEM] for word in re.findall(r"[^\W_]+", text.lower()) if word not in COMMON)


DATASETS: tuple[Dataset, ...] = (Ehrxqa(),)
