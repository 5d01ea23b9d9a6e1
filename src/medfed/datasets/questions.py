"""Read question tables: JSON lists of records, checked field by field. Shared by the question-answering datasets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from medfed.datasets.base import Record
from medfed.errors import DataError

Row = Mapping[str, object]
CLOSED = {"OPEN": False, "CLOSED": True}


def read_rows(path: Path) -> list[Row]:
    """Read a JSON list of objects, or a ``.jsonl`` file with one object a line.

    Raises:
        DataError: the file is missing, not UTF-8 JSON, or not a list of objects.
    """
    if not path.is_file():
        raise DataError("the file is missing", where=path, hint="download the complete dataset, or check --data-root")
    try:
        content = path.read_text(encoding="utf-8-sig")
        lines = [line for line in content.split("\n") if line.strip()] if path.suffix == ".jsonl" else None
        rows = json.loads(content) if lines is None else [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise DataError(f"not UTF-8 JSON ({error})", where=path, hint="download the file again") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError("not a list of JSON objects", where=path, hint="download the file again")
    return rows


def text(row: Row, field: str, path: Path, number: int) -> str:
    """Return a field as text without surrounding space; a number becomes its digits.

    Raises:
        DataError: the field is missing, empty, or neither text nor a number; the message names file, row and field.
    """
    value = row.get(field)
    stripped = str(value).strip() if isinstance(value, str | int | float) else ""
    if not stripped:
        what = "is missing" if field not in row else f"is {_described(value)}"
        raise DataError(f"record {number}: field {field!r} {what}", where=path, hint="correct or remove the record")
    return stripped


def _described(value: object) -> str:
    """Say what a bad value is, not what it says: it may be a patient's text."""
    return "empty" if isinstance(value, str) else f"of type {type(value).__name__}, neither text nor a number"


def yes_or_no(answer: str) -> int | None:
    """Return 1 for yes, 0 for no, letter case aside, and None for another answer."""
    return {"yes": 1, "no": 0}.get(answer.lower())


def is_closed(row: Row, path: Path, number: int) -> bool:
    """Return whether ``answer_type`` is CLOSED.

    Raises:
        DataError: it is neither OPEN nor CLOSED.
    """
    kind = text(row, "answer_type", path, number)
    if kind.upper() not in CLOSED:
        raise DataError(
            f"record {number}: field 'answer_type' is {kind!r}; allowed: OPEN, CLOSED",
            where=path,
            hint="correct or remove the record",
        )
    return CLOSED[kind.upper()]


def inside(name: str, field: str, path: Path, number: int) -> str:
    """Return a file name that stays inside the dataset.

    Raises:
        DataError: it is absolute or climbs out.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(
            f"record {number}: field {field!r} is {name!r}, not a path inside the dataset",
            where=path,
            hint="correct or remove the record",
        )
    return name


def origin(record: Record, folder: str, field: str) -> str:
    """Say where an image is named: ``record``'s example ends in the table's stem and the number of its row."""
    _, stem, number = record["example"].rsplit(":", 2)
    return f"{folder}/{stem}.json (record {number}, field {field!r})"
