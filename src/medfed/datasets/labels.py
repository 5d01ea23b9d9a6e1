"""Official label tables: a value nobody expects is an error, never a negative; one person has one id everywhere.

Free-text radiology reports: find the sections that say what the film shows.

The sections of a MIMIC-CXR report follow headings in capitals at the start of a line. Only FINDINGS and IMPRESSION (or
CONCLUSION) are kept: history, indication and technique tell why the film was taken, and names of staff stand below.
Source of the fall-back to the last paragraph: Johnson et al. 2019, MIMIC-CXR (their section tool).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import polars as pl

from medfed.core.errors import DataError

CHEXPERT_LABELS = {
    "atelectasis": "Atelectasis",
    "cardiomegaly": "Cardiomegaly",
    "consolidation": "Consolidation",
    "edema": "Edema",
    "enlarged_cardiomediastinum": "Enlarged Cardiomediastinum",
    "fracture": "Fracture",
    "lung_lesion": "Lung Lesion",
    "lung_opacity": "Lung Opacity",
    "no_finding": "No Finding",
    "pleural_effusion": "Pleural Effusion",
    "pleural_other": "Pleural Other",
    "pneumonia": "Pneumonia",
    "pneumothorax": "Pneumothorax",
    "support_devices": "Support Devices",
}
"""Target → column of the 14 labels that CheXpert's rules read off a report (Irvin et al. 2019, Table 1)."""


def require_values(table: pl.DataFrame, column: str, allowed: Collection[str], path: Path) -> None:
    """Check that every cell of the text ``column`` is one of ``allowed``; an empty cell (null) is not.

    Raises:
        DataError: naming the first offending row as a line of the file, the header being line 1.
    """
    strange = (table[column].is_null() | ~table[column].is_in(list(allowed))).fill_null(True)
    if strange.any():
        row = int(strange.arg_max() or 0)
        raise DataError(
            f"column {column!r}, line {row + 2}: {table[column][row]!r} is not allowed; allowed: {', '.join(allowed)}",
            where=path,
            hint="compare the file with the version on the dataset's card (medfed data list)",
        )


def require_sources(needed: pl.Series, mapped: pl.Series, path: Path) -> None:
    """Check that the source map at ``path`` has a row for each of ``needed``, else patients would be guesses.

    Raises:
        DataError: naming the first one without a row.
    """
    unknown = needed.filter(~needed.is_in(mapped.to_list()))
    if not unknown.is_empty():
        raise DataError(
            f"no row for {unknown[0]!r}, so its patient is unknown",
            where=path,
            hint="add the row, or remove the map to count each image as a patient",
        )


def nih_patient(number: pl.Expr) -> pl.Expr:
    """Return the id of an NIH Clinical Center patient from its number: the same in every dataset made of NIH images."""
    return pl.lit("nih:") + number.str.strip_chars().str.zfill(8)


def flag(condition: pl.Expr) -> pl.Expr:
    """Return a target column: 1 where ``condition`` holds, else 0."""
    return condition.fill_null(False).cast(pl.Int8)


HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ,/()&-]{2,60}):", re.MULTILINE)
WANTED = ("FINDINGS", "IMPRESSION", "CONCLUSION")


def read_report(path: Path) -> str:
    """Return the findings and the impression of a report file as one line; empty if it says nothing.

    Raises:
        DataError: the file is not UTF-8 text. The message quotes nothing of it.
    """
    try:
        return sections(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        byte = error.start
    except OSError as error:
        raise DataError(f"the report cannot be read ({error.strerror})", where=path, hint="check the file") from None
    raise DataError(f"the report is not UTF-8 text (byte {byte})", where=path, hint="download the file again")


def sections(text: str) -> str:
    """Return the wanted sections of ``text``, in order, as one line; without any, its last paragraph."""
    headings = list(HEADING.finditer(text))
    kept = []
    for number, heading in enumerate(headings, start=1):
        end = headings[number].start() if number < len(headings) else len(text)
        if any(word in heading.group(1) for word in WANTED):
            kept.append(text[heading.end() : end])
    if not kept:
        body = text[headings[-1].end() :] if headings else text
        kept = [paragraph for paragraph in re.split(r"\n\s*\n", body) if paragraph.strip()][-1:]
    return " ".join(" ".join(kept).split())
