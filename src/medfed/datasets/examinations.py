"""Public medical examinations without patients: what an LLM knows is measured with them, before and after injection.

Every set is read in the layout of its download, found below a data root by a file of its own.

=============  ==================================================  =================================================
set            layout                                              source
=============  ==================================================  =================================================
mmlu-medical   ``data/test/*_test.csv``: question, four options,   Hendrycks et al., ICLR 2021; the medical subjects
               letter; no header                                   of MIRAGE (Xiong et al. 2024)
medmcqa        ``data/dev.json``: a JSON object per line; ``cop``  Pal et al., CHIL 2022
               counts the right option from 1
medqa          ``…/US/4_options/phrases_no_exclude_test.jsonl``    Jin et al. 2020
pubmedqa       ``data/ori_pqal.json``: yes, no or maybe            Jin et al., EMNLP 2019
sample         in the package, forty questions                     written for medfed: a look, no benchmark
medquad        XML files with ``<Question>`` and ``<Answer>``      Ben Abacha and Demner-Fushman 2019
=============  ==================================================  =================================================

Deviations: PubMedQA's "maybe" is left out, and the abstract's conclusion is given in place of the abstract.
"""

from __future__ import annotations

import csv
import hashlib
import json
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from medfed.core.errors import DataError

OPTIONS = ("A", "B", "C", "D")
YES_NO = ("yes", "no")
LEAD = "The right letter is"
"""Words before the choice of an option, so that A to D are what an LLM would say next (docs/decisions/llm.md)."""
_DEPTHS = ("", "*/", "*/*/", "*/*/*/")


class Question(NamedTuple):
    """A question of an examination.

    Attributes:
        id: unique in its set.
        text: the question, with the options and how to answer.
        answers: what is compared; a single one is a reference text whose likelihood counts.
        right: number of the right answer.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Examination:
    """A set of questions.

    Attributes:
        name: of the set.
        title: in reports.
        metric: ``accuracy`` over options, ``auroc`` of yes, or ``nll``: mean negative log-likelihood of a token.
        marker: a file below its folder, as a pattern.
        read: returns the questions of a folder.
        lead: words with which every answer begins.
    """

    name: str
    title: str
    metric: str
    marker: str
    read: Callable[[Path], Iterator[Question]]
    lead: str = ""

    def find(self, root: Path) -> Path | None:
        """Return its folder below ``root``, at most three levels deep, or in the package; None if there is none."""
        if self.marker == SAMPLE:
            return Path(__file__).parent
        return next((path for depth in _DEPTHS for path in _with_marker(root, depth, self.marker)), None)

    def sample(self, folder: Path, most: int) -> list[Question]:
        """Return at most ``most`` questions, always the same ones: those with the lowest hash of their id.

        Raises:
            DataError: a file is not in the set's layout, or holds no question.
        """
        questions = sorted(self.read(folder), key=lambda one: hashlib.sha256(one.id.encode()).digest())
        if not questions:
            raise DataError("holds no question", where=folder, hint=f"download {self.title} again")
        return questions[:most]


def _with_marker(root: Path, depth: str, marker: str) -> Iterator[Path]:
    places = [root] if not depth else sorted(path for path in root.glob(depth) if path.is_dir())
    return (place for place in places if next(place.glob(marker), None) is not None)


def _choice(id: str, text: str, options: Sequence[str], right: int) -> Question:
    listed = "\n".join(f"{name}. {option.strip()}" for name, option in zip(OPTIONS, options, strict=False))
    question = f"{text.strip()}\n{listed}\nAnswer with the letter of the right option."
    return Question(id, question, OPTIONS[: len(options)], right)


def _mmlu(folder: Path) -> Iterator[Question]:
    for path in sorted((folder / "data" / "test").glob("*_test.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                if len(row) != 6 or row[5].strip() not in OPTIONS:
                    raise _broken(path, number, "a question, four options and a letter")
                yield _choice(f"{path.stem}/{number}", row[0], row[1:5], OPTIONS.index(row[5].strip()))


def _medmcqa(folder: Path) -> Iterator[Question]:
    path = folder / "data" / "dev.json"
    for number, row in _lines(path):
        options = [option for key in ("opa", "opb", "opc", "opd") if isinstance(option := row.get(key), str)]
        if len(options) < len(OPTIONS) or row.get("cop") not in (1, 2, 3, 4):
            raise _broken(path, number, "opa to opd, and cop from 1 to 4")
        yield _choice(str(row["id"]), row["question"], options, row["cop"] - 1)


def _medqa(folder: Path) -> Iterator[Question]:
    (path,) = folder.glob(MEDQA)
    for number, row in _lines(path):
        options, right = row.get("options"), row.get("answer_idx")
        if not isinstance(options, dict) or tuple(options) != OPTIONS or right not in OPTIONS:
            raise _broken(path, number, "options A to D and their answer_idx")
        yield _choice(f"medqa/{number}", row["question"], list(options.values()), OPTIONS.index(right))


def _pubmedqa(folder: Path) -> Iterator[Question]:
    path = folder / "data" / "ori_pqal.json"
    for id, row in _json(path).items():
        if not isinstance(row, dict) or not {"QUESTION", "LONG_ANSWER", "final_decision"} <= row.keys():
            raise DataError("lacks QUESTION, LONG_ANSWER or final_decision", where=f"{path}, entry {id!r}", hint=_AGAIN)
        if row["final_decision"] in YES_NO:
            text = f"{row['LONG_ANSWER'].strip()}\n{row['QUESTION'].strip()} Answer yes or no."
            yield Question(id, text, YES_NO, YES_NO.index(row["final_decision"]))


def _medquad(folder: Path) -> Iterator[Question]:
    for path in sorted(folder.glob("*_QA*/*.xml")):
        try:
            root = ET.parse(path).getroot()  # noqa: S314 # expat bounds entity expansion since 2.4.1
        except ET.ParseError as error:
            raise DataError(f"not XML: {error}", where=path, hint=_AGAIN) from error
        for pair in root.iter("QAPair"):
            question, answer = (" ".join((pair.findtext(tag) or "").split()) for tag in ("Question", "Answer"))
            if question and answer:
                yield Question(f"{path.stem}/{pair.get('pid')}", question, (_first_words(answer),), 0)


def _sample(folder: Path) -> Iterator[Question]:
    listed = tomllib.loads((folder / SAMPLE).read_text(encoding="utf-8"))
    for answer in YES_NO:
        for number, text in enumerate(listed[answer], start=1):
            yield Question(f"{answer}/{number}", f"{text} Answer yes or no.", YES_NO, YES_NO.index(answer))


def _first_words(text: str, most: int = 60) -> str:
    return " ".join(text.split(" ")[:most])


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _object(line, f"{path}, line {number}")


def _json(path: Path) -> dict[str, Any]:
    return _object(path.read_text(encoding="utf-8"), str(path))


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", where=where, hint=_AGAIN) from error
    if not isinstance(value, dict):
        raise DataError("not a JSON object", where=where, hint=_AGAIN)
    return value


def _broken(path: Path, number: int, wanted: str) -> DataError:
    return DataError(f"{wanted} are needed", where=f"{path}, line {number}", hint=_AGAIN)


_AGAIN = "download the file again"
SAMPLE = "examination_sample.toml"
MEDQA = "data_clean/questions/US/4_options/phrases_no_exclude_test.jsonl"
EXAMINATIONS = {
    one.name: one
    for one in (
        Examination("sample", "Forty questions of the package", "auroc", SAMPLE, _sample),
        Examination("mmlu-medical", "MMLU, medical subjects", "accuracy", "data/test/anatomy_test.csv", _mmlu, LEAD),
        Examination("medmcqa", "MedMCQA", "accuracy", "data/dev.json", _medmcqa, LEAD),
        Examination("medqa", "MedQA", "accuracy", MEDQA, _medqa, LEAD),
        Examination("pubmedqa", "PubMedQA, conclusion given", "auroc", "data/ori_pqal.json", _pubmedqa),
        Examination("medquad", "MedQuAD", "nll", "*_QA*/*.xml", _medquad),
    )
}
