"""Many questions from a CSV file: the model is loaded once, rows of one task go through it together.

The answers' table is written whole or not at all after every :data:`CHUNK` rows, so what is answered is never lost.
A row is skipped the next time if its id stands there with an answer to the same question. The column ``asked`` tells:
the SHA-256 of the row's question and of its files' content. Rows with an error are tried again. Nothing of a row is
printed, and the table is the user's alone to read: ids, names and questions may tell of patients.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import polars as pl

from medfed.ask.asking import Answer, Case, Request, answer_all, prepared
from medfed.ask.inputs import KINDS, Kind, parts_of
from medfed.ask.task_selection import parse_answers
from medfed.core.errors import DataError, MedfedError
from medfed.core.files import PRIVATE, sha256_of, write_whole
from medfed.datasets.tables import read_csv
from medfed.runs.loaded import LoadedRun

CHUNK = 256
"""Rows decoded and answered before the table is written."""
NUM_EXPERTS_NAMED = 3
COLUMNS = ("id", *KINDS, "task", "question", "answers")
WRITTEN = (
    "id",
    "asked",
    "run",
    "task",
    "question",
    "answer",
    "cut",
    "probability",
    "probabilities",
    "experts",
    "error",
)
"""Columns of the answers; probabilities and the heaviest experts are JSON; ``cut`` holds yes or nothing."""
Row = dict[str, str]


class Tables(NamedTuple):
    """Questions of a CSV file in ``folder``, and the rows of the table ``out`` that have an answer already."""

    rows: list[Row]
    """Every one has an ``id``, the number of its line where the file has none."""
    named: bool
    """The file has ids. Then answers to ids that it does not hold are kept."""
    folder: Path
    done: list[Row]
    out: Path
    run: str
    """The name of the run's folder, written in every row: answers of two runs never mix."""


class Counts(NamedTuple):
    """How many rows were answered now, before, and not at all."""

    answered: int
    skipped: int
    failed: int


def open_tables(csv: Path, out: Path, run: str) -> Tables:
    """Read the questions and, if ``out`` is there, the earlier answers.

    Raises DataError if a column is unknown, an id stands twice or is empty, or ``out`` holds no answers of this run.
    """
    table = read_csv(csv, ())
    rows, done = _rows(table, csv), _done(out, run) if out.exists() else []
    return Tables(rows, "id" in table.columns, csv.parent, done, out, run)


def answer_table(run: LoadedRun, tables: Tables) -> Counts:
    """Answer the rows that have no answer yet; the table is in the order of the CSV file."""
    fingerprints = _fingerprints(tables)

    def holds(row: Row) -> bool:
        return row["asked"] == fingerprints[row["id"]] if row["id"] in fingerprints else tables.named

    written = {row["id"]: row for row in filter(holds, tables.done)}
    todo = [row for row in tables.rows if row["id"] not in written]
    place = {row["id"]: number for number, row in enumerate(tables.rows)}
    failed = 0
    for start in range(0, len(todo), CHUNK):
        for row in _answered(run, todo[start : start + CHUNK], tables):
            written[row["id"]] = row | {"asked": fingerprints[row["id"]]}
            failed += bool(row["error"])
        ordered = sorted(written.values(), key=lambda row: place.get(row["id"], -1))
        write_whole(tables.out, _as_csv(ordered), PRIVATE)
    return Counts(len(todo) - failed, len(tables.rows) - len(todo), failed)


def _fingerprints(tables: Tables) -> dict[str, str]:
    """Return by id the SHA-256 of what a row asks: its cells, and the content of its files as far as they are there."""

    @cache
    def contents(kind: Kind, name: str) -> list[str]:
        return [_digest(part) for part in parts_of(kind, tables.folder / name)]

    prints = {}
    for row in tables.rows:
        files = [(kind, row[kind], contents(kind, row[kind])) for kind in KINDS if row.get(kind)]
        what = [files, *(row.get(name, "") for name in ("task", "question", "answers"))]
        prints[row["id"]] = hashlib.sha256(json.dumps(what).encode()).hexdigest()
    return prints


def _digest(path: Path) -> str:
    try:
        return sha256_of(path) if path.is_file() else ""
    except OSError:
        return ""


def _answered(run: LoadedRun, rows: list[Row], tables: Tables) -> Iterator[Row]:
    cases: dict[str, Case] = {}
    facts: dict[str, Row] = {}
    for row in rows:
        files = {kind: tables.folder / row[kind] for kind in KINDS if row.get(kind)}
        try:
            answers = parse_answers(row.get("answers"))
            request = Request(files, row.get("task") or None, row.get("question") or None, answers)
            cases[row["id"]] = prepared(run, request)
        except MedfedError as error:
            facts[row["id"]] = {"error": " ".join(str(error).split())}
    facts |= zip(cases, map(_facts, answer_all(run, list(cases.values()))), strict=True)
    for row in rows:
        yield dict.fromkeys(WRITTEN, "") | {"id": row["id"], "run": tables.run} | facts[row["id"]]


def _facts(answer: Answer) -> Row:
    facts = {name: getattr(answer, name) for name in ("task", "question", "answer")}
    probability = "" if answer.probability is None else repr(answer.probability)
    compared = "" if answer.probabilities is None else json.dumps(answer.probabilities, ensure_ascii=False)
    experts = json.dumps(answer.experts[:NUM_EXPERTS_NAMED])
    return facts | {
        "cut": "yes" if answer.cut else "",
        "probability": probability,
        "probabilities": compared,
        "experts": experts,
    }


def _rows(table: pl.DataFrame, path: Path) -> list[Row]:
    """Return the rows with trimmed cells, absent ones empty."""
    if unknown := [column for column in table.columns if column not in COLUMNS]:
        raise DataError(f"unknown column {unknown[0]!r}", where=path, hint=f"known: {', '.join(COLUMNS)}")
    if not set(KINDS) & set(table.columns):
        raise DataError("no column names a file", where=path, hint=f"add one of {', '.join(KINDS)}")
    rows = [{name: (text or "").strip() for name, text in row.items()} for row in table.iter_rows(named=True)]
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        name = row.setdefault("id", str(number))
        if not name or name in seen:
            problem = "is there twice" if name else "is empty"
            raise DataError(f"line {number}: its id {problem}", where=path, hint="give every row an id of its own")
        seen.add(name)
    return rows


def _done(out: Path, run: str) -> list[Row]:
    hint = "choose another --out, or remove it"
    table = read_csv(out, ())
    if tuple(table.columns) not in (WRITTEN, tuple(name for name in WRITTEN if name != "cut")):
        raise DataError("not a table of answers", where=out, hint=hint)
    rows = [{"cut": ""} | {name: text or "" for name, text in row.items()} for row in table.iter_rows(named=True)]
    if any(row["run"] != run for row in rows):
        raise DataError("it holds answers of another run", where=out, hint=hint)
    if len({row["id"] for row in rows}) < len(rows):
        raise DataError("an id is there twice", where=out, hint=hint)
    return [row for row in rows if not row["error"]]


def _as_csv(rows: Iterable[Row]) -> str:
    cells = [[row[name] for name in WRITTEN] for row in rows]
    return pl.DataFrame(cells, schema=list(WRITTEN), orient="row").write_csv()
