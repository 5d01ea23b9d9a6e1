"""Closed questions about a report of findings, composed from ``corpus/findings.toml``, to train the tiny LLM.

A case is a report ("consolidation in the left lower lobe; no pleural effusion.") and a question with its answer. The
answer is yes if the finding was named, described by a sign, or implied by one that was; no otherwise. A vague report
("abnormal chest image.") is answered by chance, a little more often yes: being ill makes every finding likelier.
Findings marked ``held_out`` appear in no training case; questions about them test whether the LLM reads or remembers.

No label of any example is here: the text is about medicine, not about the data.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

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
        """Return the findings of training, or those held out."""
        return tuple(finding for finding in self.findings if finding.held_out is held_out)

    def implied(self, name: str) -> frozenset[str]:
        """Return ``name`` and everything it implies, over any number of steps."""
        direct = next(finding.implies for finding in self.findings if finding.name == name)
        return frozenset({name}).union(*(self.implied(other) for other in direct))


class ClosedCase(NamedTuple):
    """A report, a question, the right answer, and how the answer follows."""

    context: str
    question: str
    answer: str
    kind: Kind


class _Report(NamedTuple):
    phrases: list[str]
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
    """Return sentences on the findings of training: their signs, implications and companions."""
    sentences = []
    for domain in domains().values():
        for finding in domain.pool(held_out=False):
            sentences += [f"{sign[0].upper()}{sign[1:]} is a sign of {finding.name}." for sign in finding.signs]
            sentences += [f"Whoever has {finding.name} has {other}." for other in finding.implies]
            sentences += [f"With {finding.name} there is often {other}." for other in finding.often]
    return sentences


def compose_closed(rng: np.random.Generator, *, held_out: bool = False, vague: bool = True) -> ClosedCase:
    """Draw a case.

    Args:
        rng: the random generator.
        held_out: take held-out findings only.
        vague: allow reports whose answer is a matter of chance.
    """
    domain = pick(rng, tuple(domains().values()))
    report = _report(rng, domain, held_out, vague)
    text = "; ".join(report.phrases) + "."
    if rng.random() < 0.5:
        text = f"Findings: {text}"
    if domain.every is not None and rng.random() < 0.2:
        anything = bool(report.named or report.described or report.vague)
        return ClosedCase(text, domain.every.question, YES if anything else NO, "any")
    return _question(rng, domain, report, text, held_out)


def _report(rng: np.random.Generator, domain: Domain, held_out: bool, vague: bool) -> _Report:
    chance = rng.random()
    if not held_out and chance < NORMAL_SHARE:
        return _Report(_sample(rng, domain.normal, int(rng.integers(1, 4))))
    if not held_out and vague and chance < NORMAL_SHARE + VAGUE_SHARE:
        return _Report([pick(rng, domain.vague)], vague=True)
    pool = domain.pool(held_out=held_out)
    present = _sample(rng, pool, int(rng.integers(1, 4)))
    implied = frozenset().union(*(domain.implied(finding.name) for finding in present))
    named = frozenset(finding.name for finding in present if rng.random() < 0.8)
    others = [finding.name for finding in pool if finding.name not in implied]
    denied = frozenset(_sample(rng, others, int(rng.choice([0, 0, 1, 2]))))
    phrases = [finding.name if finding.name in named else pick(rng, finding.signs) for finding in present]
    phrases = [f"{phrase} {pick(rng, domain.places)}" if rng.random() < 0.25 else phrase for phrase in phrases]
    phrases += [f"no {name}" for name in sorted(denied)]
    described = frozenset(finding.name for finding in present) - named
    return _Report([phrases[i] for i in rng.permutation(len(phrases))], named, described, denied)


def _question(rng: np.random.Generator, domain: Domain, report: _Report, text: str, held_out: bool) -> ClosedCase:
    pool = domain.pool(held_out=held_out)
    present = sorted(report.named | report.described)
    implied = sorted(frozenset().union(*(domain.implied(name) for name in present)) - set(present))
    absent = sorted({finding.name for finding in pool} - {*present, *implied, *report.denied})
    if present and rng.random() < 0.5:
        name = pick(rng, implied) if implied and rng.random() < 0.25 else pick(rng, present)
    else:
        name = pick(rng, sorted(report.denied) if report.denied and (not absent or rng.random() < 0.4) else absent)
    kind, answer = _kind(report, name, implied), NO
    if kind in ("named", "sign", "implied") or (kind == "vague" and rng.random() < VAGUE_YES):
        answer = YES
    specific = next(finding.questions for finding in pool if finding.name == name) if name not in implied else ()
    question = pick(rng, specific * 2 + domain.questions).format(finding=name)
    return ClosedCase(text, question, answer, kind)


def _kind(report: _Report, name: str, implied: Sequence[str]) -> Kind:
    if report.vague:
        return "vague"
    if name in report.named:
        return "named"
    if name in report.described:
        return "sign"
    if name in implied:
        return "implied"
    return "negated" if name in report.denied else "absent"


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Draw one of ``options``, all equally likely."""
    return options[int(rng.integers(len(options)))]


def _sample(rng: np.random.Generator, options: Sequence[T], size: int) -> list[T]:
    return [options[int(i)] for i in rng.permutation(len(options))[:size]]
