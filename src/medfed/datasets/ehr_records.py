"""A patient's hospital record as text: the lines of a hospital's tables that answer EHRXQA's questions.

Tables are those that EHRXQA builds from MIMIC-IV (columns in either case), as CSV files or in its SQLite database. An
absent table adds no line. A record is a list of lines, newest first, each a date, a kind, a name and a value. The lines
that share words with the question come first, and the text is cut to a length: a patient may have thousands.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import polars as pl

from medfed.core.errors import DataError
from medfed.datasets.tables import read_csv, require_columns

DATABASE = "mimic_iv_cxr.db"
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


def people_file(folder: Path) -> Path:
    """Return the file that lists the patients: their table, else the database."""
    table = folder / "patients.csv"
    return table if table.is_file() else folder / DATABASE


def read_table(folder: Path, name: str, columns: tuple[str, ...]) -> pl.DataFrame | None:
    """Return ``columns`` of a table as lower-case text, or None if the folder lacks it.

    Raises DataError if the table cannot be read, or lacks a column.
    """
    csv = folder / f"{name}.csv"
    path = csv if csv.is_file() else folder / DATABASE
    table = read_csv(csv, ()) if path == csv else _from_database(path, name) if path.is_file() else None
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
        raise DataError(f"neither patients.csv nor {DATABASE} is there", where=folder, hint=hint)
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
