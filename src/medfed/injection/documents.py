"""Running text for the tiny LLM: the package's own reference, or a folder that the user points at.

A folder may hold ``.txt`` files, paragraphs apart by blank lines, and ``.xml`` files with ``<Question>`` and
``<Answer>`` elements (the layout of MedQuAD). Everything must be UTF-8.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from medfed.errors import DataError
from medfed.injection.cases import facts

REFERENCE = Path(__file__).parent / "corpus" / "reference.txt"


def documents(corpus: Path | None) -> list[str]:
    """Return the texts of ``corpus``, or the package's own, in the order of their file names.

    Raises:
        DataError: the folder is absent, holds no text, or a file is not UTF-8 or not XML.
    """
    if corpus is None:
        return _paragraphs(REFERENCE) + facts()
    if not corpus.is_dir():
        raise DataError("the corpus is not a folder", where=corpus, hint="check --corpus")
    texts: list[str] = []
    for path in sorted(corpus.rglob("*")):
        if path.suffix == ".txt":
            texts += _paragraphs(path)
        elif path.suffix == ".xml":
            texts += _answered_questions(path)
    if not texts:
        raise DataError("no text in *.txt or *.xml files", where=corpus, hint="check --corpus")
    return texts


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 text (byte {error.start})", where=path, hint="convert it: iconv -f LATIN1 -t UTF-8"
        ) from error


def _paragraphs(path: Path) -> list[str]:
    return [" ".join(block.split()) for block in _read(path).split("\n\n") if block.strip()]


def _answered_questions(path: Path) -> list[str]:
    text = _read(path)
    try:
        root = ET.fromstring(text)  # noqa: S314 # expat bounds entity expansion since 2.4.1, older than Python 3.11's
    except ET.ParseError as error:
        raise DataError(f"not XML: {error}", where=path, hint="download the file again") from error
    pairs = []
    for parent in root.iter():
        question, answer = _text(parent.find("Question")), _text(parent.find("Answer"))
        if question and answer:
            pairs.append(f"Question: {question} Answer: {answer}")
    return pairs


def _text(element: ET.Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())
