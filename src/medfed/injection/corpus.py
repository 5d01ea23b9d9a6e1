"""What the tiny foundation reads before it ever sees a patient: our own medical text, or a folder of the user's.

A real medical LLM knows what a finding looks like and what a closed question asks. The package's text teaches the tiny one
the same in small: short findings lines and closed questions whose answer depends on whether the named finding, or
one that implies it, is in the line. Findings marked ``held_out`` appear in no training text; questions about
them measure reading instead of memory.
"""

from __future__ import annotations

import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from medfed.errors import DataError
from medfed.rng import numpy_rng


class ClosedQuestion(NamedTuple):
    """A findings line, a question about it, and whether the answer is yes."""

    line: str
    question: str
    answer: bool


class Finding(BaseModel):
    """A finding of ``corpus/findings.toml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    signs: tuple[str, ...]
    implies: tuple[str, ...] = ()
    often: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    held_out: bool = False


class Every(BaseModel):
    """A question that any finding answers with yes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    question: str


class Domain(BaseModel):
    """What is said and asked about one kind of examination."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    normal: tuple[str, ...]
    vague: tuple[str, ...]
    places: tuple[str, ...]
    questions: tuple[str, ...]
    findings: tuple[Finding, ...]
    every: Every | None = None


def load_domains() -> dict[str, Domain]:
    """Read the package's findings."""
    text = files("medfed.injection").joinpath("corpus", "findings.toml").read_text(encoding="utf-8")
    return {name: Domain.model_validate(table) for name, table in tomllib.loads(text).items()}


def facts(domains: dict[str, Domain]) -> Iterator[str]:
    """Yield one sentence per known sign, implication and companion."""
    for domain in domains.values():
        for finding in domain.findings:
            if not finding.held_out:
                yield from (f"{finding.name} shows as {sign}." for sign in finding.signs)
                yield from (f"{finding.name} means {other}." for other in finding.implies)
                yield from (f"{finding.name} often comes with {other}." for other in finding.often)


def closed_questions(domain: Domain, rng: np.random.Generator, count: int, *, held_out: bool) -> list[ClosedQuestion]:
    """Draw ``count`` questions, half of them answered yes; ``held_out`` chooses which findings are asked about."""
    pool = [finding for finding in domain.findings if finding.held_out == held_out]
    return [_closed_question(domain, pool, rng) for _ in range(count)]


def render(item: ClosedQuestion) -> str:
    """Return the training text of a closed question; the prompt of a task has the same form."""
    return f"{item.line}. Question: {item.question} Answer: {'yes' if item.answer else 'no'}"


def teaching_text(seed: int, num_questions: int) -> list[str]:
    """Return the package's training documents: facts and closed questions, in a fixed order drawn from ``seed``."""
    domains = load_domains()
    rng = numpy_rng(seed, "corpus")
    documents = list(facts(domains)) * 3
    for domain in domains.values():
        drawn = closed_questions(domain, rng, num_questions // len(domains), held_out=False)
        documents += [render(item) for item in drawn]
    return [documents[position] for position in rng.permutation(len(documents))]


def read_folder(folder: Path) -> list[str]:
    """Return the text of every ``.txt`` file, and every question and answer of every ``.xml`` file, below ``folder``.

    Raises:
        DataError: the folder is absent or holds no text; a file is not UTF-8 or not XML.
    """
    if not folder.is_dir():
        raise DataError("the corpus is not a folder", where=folder, hint="check --corpus")
    documents = [text for path in sorted(folder.rglob("*")) for text in _texts(path)]
    if not documents:
        raise DataError("no .txt or .xml text here", where=folder, hint="put UTF-8 text files into the corpus folder")
    return documents


def _closed_question(domain: Domain, pool: list[Finding], rng: np.random.Generator) -> ClosedQuestion:
    asked = pool[rng.integers(len(pool))]
    answer = bool(rng.random() < 0.5)
    others = [finding for finding in domain.findings if not finding.held_out and asked.name not in _meaning(finding)]
    shown = [others[position] for position in rng.choice(len(others), rng.integers(0, 3), replace=False)]
    if answer:
        causes = [finding for finding in domain.findings if asked.name in _meaning(finding)]
        cause = causes[rng.integers(len(causes))] if rng.random() < 0.3 else asked
        shown.insert(int(rng.integers(len(shown) + 1)), cause)
    if domain.every is not None and rng.random() < 0.2 and not asked.held_out:
        return ClosedQuestion(_line(domain, shown, rng), domain.every.question, bool(shown))
    wording = asked.questions or domain.questions
    question = wording[rng.integers(len(wording))].format(finding=asked.name)
    return ClosedQuestion(_line(domain, shown, rng), question, answer)


def _line(domain: Domain, shown: list[Finding], rng: np.random.Generator) -> str:
    if not shown:
        return str(domain.normal[rng.integers(len(domain.normal))])
    return ", ".join(_mention(domain, finding, rng) for finding in shown)


def _mention(domain: Domain, finding: Finding, rng: np.random.Generator) -> str:
    words = (finding.name, finding.name, *finding.signs)
    text = words[rng.integers(len(words))]
    return f"{text} {domain.places[rng.integers(len(domain.places))]}" if rng.random() < 0.3 else text


def _meaning(finding: Finding) -> tuple[str, ...]:
    return (finding.name, *finding.implies)


def _texts(path: Path) -> Iterator[str]:
    try:
        if path.suffix == ".txt":
            yield path.read_text(encoding="utf-8")
        elif path.suffix == ".xml":
            for element in ET.parse(path).iter():  # noqa: S314  (entities are not expanded by ElementTree)
                if element.tag in {"Question", "Answer"} and element.text:
                    yield " ".join(element.text.split())
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text (byte {error.start})", where=path, hint="convert it with iconv") from error
    except ET.ParseError as error:
        raise DataError(f"not XML: {error}", where=path, hint="take it out of the corpus, or mend it") from error
