"""Questions in JSON: lists of objects whose fields are text, and the datasets of questions about images."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import UInt8

from medfed.core.errors import DataError
from medfed.datasets.base import AGAIN, Dataset, Raw, Record, require, require_file
from medfed.datasets.images import load_image

CORRECT = "correct or remove the record"


class Entry(NamedTuple):
    """One object of a list: its fields, and its place. A field that is not as wanted raises :meth:`error`."""

    fields: Mapping[str, object]
    path: Path
    number: int

    def text(self, field: str) -> str:
        """Return a field, text or a number, as text without surrounding space; it may not be empty."""
        value = self.fields.get(field)
        stripped = str(value).strip() if isinstance(value, str | int | float) else ""
        if stripped:
            return stripped
        if field not in self.fields:
            raise self.error(field, "is missing")
        kind = "empty" if isinstance(value, str) else f"of type {type(value).__name__}, neither text nor a number"
        raise self.error(field, f"is {kind}")

    def file(self, field: str) -> str:
        """Return a field that names a file; it may neither be absolute nor climb out of the dataset."""
        name = self.text(field)
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise self.error(field, f"is {name!r}, not a path inside the dataset")
        return name

    def values(self, field: str) -> list[str]:
        """Return a field that is a list with at least one value, as texts."""
        values = self.fields.get(field)
        if not isinstance(values, list) or not values:
            raise self.error(field, f"is {values!r}, not a list with values")
        return [str(value) for value in values]

    def closed(self) -> bool:
        """Return whether ``answer_type`` is CLOSED, not OPEN."""
        kind = self.text("answer_type")
        if kind.upper() not in ("OPEN", "CLOSED"):
            raise self.error("answer_type", f"is {kind!r}; allowed: OPEN, CLOSED")
        return kind.upper() == "CLOSED"

    def error(self, field: str, what: str, hint: str = CORRECT) -> DataError:
        """Return the error that ``field`` of this object is ``what``. A patient's text is not to be quoted in it."""
        return DataError(f"record {self.number}: field {field!r} {what}", where=self.path, hint=hint)


def read_entries(path: Path) -> list[Entry]:
    """Read a JSON list of objects, or a ``.jsonl`` file with one object a line.

    Raises DataError if the file is missing, not UTF-8 JSON, or not a list of objects.
    """
    require_file(path)
    try:
        content = path.read_text(encoding="utf-8-sig")
        lines = [line for line in content.split("\n") if line.strip()]
        rows = [json.loads(line) for line in lines] if path.suffix == ".jsonl" else json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not UTF-8 JSON ({error})", where=path, hint=AGAIN) from error
    objects = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    require(objects, "not a list of JSON objects", path, AGAIN)
    return [Entry(row, path, number) for number, row in enumerate(rows)]


def yes_or_no(answer: str) -> int | None:
    """Return 1 for yes, 0 for no, upper or lower case, and None for another answer."""
    return {"yes": 1, "no": 0}.get(answer.lower())


def text_bytes(text: str) -> UInt8[np.ndarray, " byte"]:
    """Return a text as the text modality takes it: UTF-8 bytes."""
    return np.frombuffer(text.encode(), np.uint8)


class ImageQuestions(Dataset):
    """Questions about images, in JSON lists in one folder; a patient is what :meth:`patient` makes of an image's name.

    The images are in a folder below that of the lists; ``image_field`` is the field that names one.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    targets: ClassVar[tuple[str, ...]] = ("answer",)
    folder: ClassVar[str]
    images: ClassVar[str]
    image_field: ClassVar[str]

    @abstractmethod
    def patient(self, image: str) -> str:
        """Return the patient behind the image called ``image``."""

    def load(self, root: Path, record: Record) -> Raw:
        """Decode the image to [0, 1]."""
        _, stem, number = record["example"].rsplit(":", 2)
        listed_in = f"{self.folder}/{stem}.json (record {number}, field {self.image_field!r})"
        return {"image": load_image(root, record, listed_in)}

    def row(self, entry: Entry, source: str, split: str) -> dict[str, object]:
        """Return an object's row of the index; ids begin with ``source``."""
        image = entry.file(self.image_field)
        return {
            "example": f"{source}:{entry.path.stem}:{entry.number}",
            "patient": f"{source}:{self.patient(image)}",
            "split": split,
            "files": [f"{self.folder}/{self.images}/{image}"],
            "question": entry.text("question"),
            "answer": entry.text("answer"),
            "closed": entry.closed(),
        }
