"""Many questions from a CSV file: the model is loaded once, rows of one task go through it together.

The answers' table is written whole or not at all after every :data:`CHUNK` rows, so what is answered is never lost.
A row is skipped the next time if its id stands there with an answer to the same question. The column ``asked`` tells:
the SHA-256 of the row's question and of its files' content. Rows with an error are tried again. Nothing of a row is
printed, and the table is the user's alone to read: ids, names and questions may tell of patients.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
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
WRITTEN = ("id", "asked", "run", "task", "question", "answer", "probability", "probabilities", "experts", "error")
"""Columns of the answers; probabilities and the heaviest experts are JSON."""
Row = dict[str, str]


class Tables(NamedTuple):
    """Questions of a CSV file, and the answers that are there already.

    Attributes:
        rows: of the CSV file; every one has an ``id``, the number of its line where the file has none.
        named: the file has ids. Then answers to ids that it does not hold are kept.
        folder: paths are relative to it.
        done: rows of ``out`` that have an answer.
        out: the table of answers.
        run: the name of the run's folder, written in every row: answers of two runs never mix.
    """

    rows: list[Row]
    named: bool
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
    """Read the questions and, if ``out`` is there, the earlier answers.

    Raises:
        DataError: a column is unknown, an id stands twice or is empty, or ``out`` is not a table of this run's answers.
    """
    table = read_csv(csv, ())
    rows = _rows(table, csv)
    done = _done(out, run) if out.exists() else []
    return Tables(rows, "id" in table.columns, csv.parent, done, out, run)


def answer_table(run: LoadedRun, tables: Tables) -> Counts:
    """Answer the rows that have no answer yet; the table is in the order of the CSV file."""
    fingerprints = _fingerprints(tables)
    written = {row["id"]: row for row in tables.done if _holds(row, fingerprints, tables)}
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
    known: dict[tuple[Kind, str], list[str]] = {}
    prints = {}
    for row in tables.rows:
        files: list[object] = []
        for kind in KINDS:
            if name := row.get(kind):
                if (kind, name) not in known:
                    known[kind, name] = [_digest(part) for part in parts_of(kind, tables.folder / name)]
                files.append((kind, name, known[kind, name]))
        what = [files, *(row.get(name, "") for name in ("task", "question", "answers"))]
        prints[row["id"]] = hashlib.sha256(json.dumps(what).encode()).hexdigest()
    return prints


def _digest(path: Path) -> str:
    try:
        return sha256_of(path) if path.is_file() else ""
    except OSError:
        return ""


def _holds(answered: Row, fingerprints: Mapping[str, str], tables: Tables) -> bool:
    if answered["id"] not in fingerprints:
        return tables.named
    return answered["asked"] == fingerprints[answered["id"]]


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
    if len({row["id"] for row in rows}) < len(rows):
        raise DataError("an id is there twice", where=out, hint=hint)
    return [row for row in rows if not row["error"]]


def _as_csv(rows: Iterable[Row]) -> str:
    table = pl.DataFrame([[row[name] for name in WRITTEN] for row in rows], schema=list(WRITTEN), orient="row")
    text = io.StringIO()
    table.write_csv(text)
    return text.getvalue()
