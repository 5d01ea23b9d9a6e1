"""EHRXQA's answers as short texts: what its SQL returned, in one canonical form.

A list is joined by commas, texts in alphabetical order; numbers lose superfluous zeros; nothing found is "none". A
question of whether something is so is answered by 1 or 0 in the release, and by yes or no here.
"""

from __future__ import annotations

import re
from pathlib import Path

from medfed.datasets.questions import Row, text
from medfed.errors import DataError

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
