"""Closed questions about a line of findings, composed from ``corpus/findings.toml``: they teach the tiny LLM to answer.

A case is what a reader was told ("consolidation in the left lower lobe; no pleural effusion.") and a question with its
answer: yes if the finding was named, described by a sign, or implied by one that was; no otherwise. A vague line
("abnormal chest image.") is answered by chance, a little more often yes: being ill makes every finding likelier.
Findings marked ``held_out`` appear in no taught case; questions about them show whether the LLM reads or remembers.

No label of any example stands here: the text is about medicine, not about the data.

Running text for the tiny LLM: the package's own reference, or a folder that the user points at.

A folder may hold ``.txt`` files, paragraphs apart by blank lines, and ``.xml`` files with ``<Question>`` and
``<Answer>`` elements (the layout of MedQuAD). Everything must be UTF-8.
"""

from __future__ import annotations

import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medfed.core.errors import DataError

T = TypeVar("T")
FINDINGS = Path(__file__).parent / "corpus" / "findings.toml"
YES, NO = "Yes", "No"
Kind = Literal["named", "sign", "implied", "negated", "absent", "vague", "any"]
NORMAL_SHARE, VAGUE_SHARE = 0.12, 0.1
VAGUE_YES = 0.6


class Finding(BaseModel):
    """A finding; fields as explained in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    signs: tuple[str, ...]
    implies: tuple[str, ...] = ()
    often: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    held_out: bool = False


class Overall(BaseModel):
    """A question about the whole recording, answered yes by any finding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    question: str


class Domain(BaseModel):
    """A kind of examination."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    normal: tuple[str, ...]
    vague: tuple[str, ...]
    places: tuple[str, ...]
    questions: tuple[str, ...]
    findings: tuple[Finding, ...] = Field(min_length=8)
    every: Overall | None = None

    def pool(self, *, held_out: bool) -> tuple[Finding, ...]:
        """Return the findings that are taught, or those that are held out."""
        return tuple(finding for finding in self.findings if finding.held_out is held_out)

    def implied(self, name: str) -> frozenset[str]:
        """Return ``name`` and everything it implies, over any number of steps."""
        direct = next(finding.implies for finding in self.findings if finding.name == name)
        return frozenset({name}).union(*(self.implied(other) for other in direct))


class Case(NamedTuple):
    """What was told, what is asked, and the right answer."""

    told: str
    question: str
    answer: str
    kind: Kind


class _Told(NamedTuple):
    items: list[str]
    named: frozenset[str] = frozenset()
    described: frozenset[str] = frozenset()
    denied: frozenset[str] = frozenset()
    vague: bool = False


@cache
def domains() -> dict[str, Domain]:
    """Read the findings."""
    tree = tomllib.loads(FINDINGS.read_text(encoding="utf-8"))
    return {name: Domain.model_validate(fields) for name, fields in tree.items()}


def facts() -> list[str]:
    """Return sentences on the taught findings: their signs, what they imply and what they come with."""
    sentences = []
    for domain in domains().values():
        for finding in domain.pool(held_out=False):
            sentences += [f"{sign[0].upper()}{sign[1:]} is a sign of {finding.name}." for sign in finding.signs]
            sentences += [f"Whoever has {finding.name} has {other}." for other in finding.implies]
            sentences += [f"With {finding.name} there is often {other}." for other in finding.often]
    return sentences


def compose(rng: np.random.Generator, *, held_out: bool = False, vague: bool = True) -> Case:
    """Draw a case.

    Args:
        rng: the source of chance.
        held_out: ask about held-out findings only.
        vague: allow lines whose answer is a matter of chance.
    """
    domain = pick(rng, tuple(domains().values()))
    told = _told(rng, domain, held_out, vague)
    line = "; ".join(told.items) + "."
    if rng.random() < 0.5:
        line = f"Findings: {line}"
    if domain.every is not None and rng.random() < 0.2:
        anything = bool(told.named or told.described or told.vague)
        return Case(line, domain.every.question, YES if anything else NO, "any")
    return _asked(rng, domain, told, line, held_out)


def _told(rng: np.random.Generator, domain: Domain, held_out: bool, vague: bool) -> _Told:
    chance = rng.random()
    if not held_out and chance < NORMAL_SHARE:
        return _Told(_sample(rng, domain.normal, int(rng.integers(1, 4))))
    if not held_out and vague and chance < NORMAL_SHARE + VAGUE_SHARE:
        return _Told([pick(rng, domain.vague)], vague=True)
    pool = domain.pool(held_out=held_out)
    present = _sample(rng, pool, int(rng.integers(1, 4)))
    implied = frozenset().union(*(domain.implied(finding.name) for finding in present))
    named = frozenset(finding.name for finding in present if rng.random() < 0.8)
    others = [finding.name for finding in pool if finding.name not in implied]
    denied = frozenset(_sample(rng, others, int(rng.choice([0, 0, 1, 2]))))
    items = [finding.name if finding.name in named else pick(rng, finding.signs) for finding in present]
    items = [f"{item} {pick(rng, domain.places)}" if rng.random() < 0.25 else item for item in items]
    items += [f"no {name}" for name in sorted(denied)]
    described = frozenset(finding.name for finding in present) - named
    return _Told([items[i] for i in rng.permutation(len(items))], named, described, denied)


def _asked(rng: np.random.Generator, domain: Domain, told: _Told, line: str, held_out: bool) -> Case:
    pool = domain.pool(held_out=held_out)
    present = sorted(told.named | told.described)
    implied = sorted(frozenset().union(*(domain.implied(name) for name in present)) - set(present))
    absent = sorted({finding.name for finding in pool} - {*present, *implied, *told.denied})
    if present and rng.random() < 0.5:
        name = pick(rng, implied) if implied and rng.random() < 0.25 else pick(rng, present)
    else:
        name = pick(rng, sorted(told.denied) if told.denied and (not absent or rng.random() < 0.4) else absent)
    kind, answer = _kind(told, name, implied), NO
    if kind in ("named", "sign", "implied") or (kind == "vague" and rng.random() < VAGUE_YES):
        answer = YES
    own = next(finding.questions for finding in pool if finding.name == name) if name not in implied else ()
    question = pick(rng, own * 2 + domain.questions).format(finding=name)
    return Case(line, question, answer, kind)


def _kind(told: _Told, name: str, implied: Sequence[str]) -> Kind:
    if told.vague:
        return "vague"
    if name in told.named:
        return "named"
    if name in told.described:
        return "sign"
    if name in implied:
        return "implied"
    return "negated" if name in told.denied else "absent"


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Draw one of ``options``, all equally likely."""
    return options[int(rng.integers(len(options)))]


def _sample(rng: np.random.Generator, options: Sequence[T], size: int) -> list[T]:
    return [options[int(i)] for i in rng.permutation(len(options))[:size]]


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
