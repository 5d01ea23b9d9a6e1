"""Many questions from a CSV file: the model is loaded once, rows of one task go through it together.

The answers' table is written whole or not at all after every :data:`CHUNK` rows, so what is answered is never lost.
Rows whose id stands there with an answer are skipped the next time; rows with an error are asked again. Nothing of a
row is printed: ids, names and questions may tell of patients.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from medfed.asking import Answer, Case, Request, answer_all, prepared
from medfed.choosing import parse_answers
from medfed.datasets.base import read_csv
from medfed.errors import DataError, MedfedError
from medfed.inputs import KINDS
from medfed.loaded import LoadedRun
from medfed.report.page import write_whole

CHUNK = 256
"""Rows decoded and answered before the table is written."""
NUM_EXPERTS_NAMED = 3
COLUMNS = ("id", *KINDS, "task", "question", "answers")
WRITTEN = ("id", "run", "task", "question", "answer", "probability", "probabilities", "experts", "error")
"""Columns of the answers; probabilities and the heaviest experts are JSON."""
Row = dict[str, str]


class Tables(NamedTuple):
    """What is asked and what is answered already.

    Attributes:
        rows: of the CSV file; every one has an ``id``, the number of its line where the file has none.
        folder: paths are relative to it.
        done: rows of ``out`` that have an answer.
        out: the table of answers.
        run: the name of the run's folder, written in every row: answers of two runs never mix.
    """

    rows: list[Row]
    folder: Path
    done: list[Row]
    out: Path
    run: str


class Counts(NamedTuple):
    """How many rows were answered now, before, and not at all."""

    answered: int
    skipped: int
    failed: int


def open_tables(csv: Path, out: Path, run: str) -> Tables:
    """Read what is asked and, if ``out`` is there, what was answered before.

    Raises:
        DataError: a column is unknown, an id stands twice or is empty, or ``out`` is not a table of this run's answers.
    """
    rows = _rows(read_csv(csv, ()), csv)
    done = _done(out, run) if out.exists() else []
    return Tables(rows, csv.parent, done, out, run)


def answer_table(run: LoadedRun, tables: Tables) -> Counts:
    """Answer the rows that have no answer yet; the table is in the order of the CSV file."""
    written = {row["id"]: row for row in tables.done}
    todo = [row for row in tables.rows if row["id"] not in written]
    place = {row["id"]: number for number, row in enumerate(tables.rows)}
    failed = 0
    for start in range(0, len(todo), CHUNK):
        for row in _answered(run, todo[start : start + CHUNK], tables):
            written[row["id"]] = row
            failed += bool(row["error"])
        ordered = sorted(written.values(), key=lambda row: place.get(row["id"], -1))
        write_whole(_as_csv(ordered), tables.out)
    return Counts(len(todo) - failed, len(tables.rows) - len(todo), failed)


def _answered(run: LoadedRun, rows: list[Row], tables: Tables) -> Iterator[Row]:
    cases: dict[str, Case] = {}
    wrong: dict[str, str] = {}
    for row in rows:
        try:
            cases[row["id"]] = prepared(run, _request(row, tables.folder))
        except MedfedError as error:
            wrong[row["id"]] = " ".join(str(error).split())
    answers = dict(zip(cases, answer_all(run, list(cases.values())), strict=True))
    for row in rows:
        facts = _facts(answers[row["id"]]) if row["id"] in answers else {"error": wrong[row["id"]]}
        yield dict.fromkeys(WRITTEN, "") | {"id": row["id"], "run": tables.run} | facts


def _request(row: Row, folder: Path) -> Request:
    files = {kind: folder / row[kind] for kind in KINDS if row.get(kind)}
    return Request(files, row.get("task") or None, row.get("question") or None, parse_answers(row.get("answers")))


def _facts(answer: Answer) -> Row:
    return {
        "task": answer.task,
        "question": answer.question,
        "answer": answer.answer,
        "probability": "" if answer.probability is None else repr(answer.probability),
        "probabilities": "" if answer.probabilities is None else json.dumps(answer.probabilities, ensure_ascii=False),
        "experts": json.dumps(answer.experts[:NUM_EXPERTS_NAMED]),
    }


def _rows(table: pl.DataFrame, path: Path) -> list[Row]:
    """Return the rows with trimmed cells, absent ones empty.

    Raises:
        DataError: see :func:`open_tables`.
    """
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
    if tuple(table.columns) != WRITTEN:
        raise DataError("not a table of answers", where=out, hint=hint)
    rows = [{name: text or "" for name, text in row.items()} for row in table.iter_rows(named=True)]
    if any(row["run"] != run for row in rows):
        raise DataError("it holds answers of another run", where=out, hint=hint)
    return [row for row in rows if not row["error"]]


def _as_csv(rows: Iterable[Row]) -> str:
    table = pl.DataFrame([[row[name] for name in WRITTEN] for row in rows], schema=list(WRITTEN), orient="row")
    text = io.StringIO()
    table.write_csv(text)
    return text.getvalue()
