"""Free-text radiology reports: find the sections that say what the film shows.

The sections of a MIMIC-CXR report follow headings in capitals at the start of a line. Only FINDINGS and IMPRESSION (or
CONCLUSION) are kept: history, indication and technique tell why the film was taken, and names of staff stand below.
Source of the fall-back to the last paragraph: Johnson et al. 2019, MIMIC-CXR (their section tool).
"""

from __future__ import annotations

import re
from pathlib import Path

from medfed.errors import DataError

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
