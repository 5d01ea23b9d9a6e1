"""Open questions about an examination, composed from ``corpus/open.toml``: they teach the tiny LLM short answers.

A case is what a reader was told, a question, and an answer of a few words. A full line tells the examination, what is
seen and where; a short one names the examination ("Chest X-ray."), so that the answer is what is usual for it; an empty
one tells nothing, as where the image comes as projected tokens, and the answer rests on the question. The lines of the
findings are asked closed questions (``cases.py``); these are their open counterpart.

No label of any example stands here: the text is about medicine, not about the data.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medfed.llm.tiny.cases import pick

OPEN = Path(__file__).parent / "corpus" / "open.toml"
NONE = "none"
Line = Literal["full", "short", "empty"]
FULL_SHARE, SHORT_SHARE = 0.4, 0.4
SIDES = ("right", "left", "both")
TOLD = ("noise", "symptom", "rhythm", "axis", "finding", "lead", "place", "size", "number")
"""What a line can tell, in its order."""
BESIDE = frozenset({"lead", "place", "size", "number"})
"""What a line may tell although something else is asked."""
OF_FOUND = frozenset({"side", "place", "lead"})
OF_LESIONS = frozenset({"size", "number", "density"})
"""Topics that are asked only where something, or a lesion, is found."""


class Topic(BaseModel):
    """A kind of question; fields as explained in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    questions: tuple[str, ...] = Field(min_length=1)
    held_out: tuple[str, ...] = Field(min_length=1)
    told: str = ""


class Form(BaseModel):
    """A name of an examination, and the answers that follow from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    answers: dict[str, str] = {}


class Finding(BaseModel):
    """Something seen; fields as explained in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    disease: str
    places: tuple[str, ...] = ()
    lesion: bool = False


class Exam(BaseModel):
    """A kind of examination; fields as explained in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: int = Field(default=1, gt=0)
    forms: tuple[Form, ...] = Field(min_length=1)
    answers: dict[str, tuple[str, ...]]
    findings: dict[str, Finding] = {}
    shades: dict[str, str] = {}

    @property
    def words(self) -> list[str]:
        """Every answer that stands in the file."""
        listed = [answer for some in self.answers.values() for answer in some]
        followed = [answer for form in self.forms for answer in form.answers.values()]
        seen = [word for name, found in self.findings.items() for word in (name, found.disease, *found.places)]
        return [*listed, *followed, *seen, *self.shades.values()]


class OpenCorpus(BaseModel):
    """The file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    topics: dict[str, Topic]
    exams: dict[str, Exam]

    @model_validator(mode="after")
    def _topics_known_and_answers_lower(self) -> OpenCorpus:
        for name, exam in self.exams.items():
            unknown = set(exam.answers) - set(self.topics)
            shouted = [word for word in exam.words if word != word.lower()]
            if unknown or shouted:
                raise ValueError(f"exam {name!r}: unknown topics {sorted(unknown)}, not lower case: {shouted}")
        return self


class OpenCase(NamedTuple):
    """What was told, what is asked, the right answer, its topic, and how much the line tells."""

    told: str
    question: str
    answer: str
    kind: str
    line: Line


@cache
def open_corpus() -> OpenCorpus:
    """Read the topics and examinations."""
    return OpenCorpus.model_validate(tomllib.loads(OPEN.read_text(encoding="utf-8")))


def compose_open(rng: np.random.Generator, *, held_out: bool = False) -> OpenCase:
    """Draw a case; with ``held_out``, in a wording that no taught case has."""
    corpus = open_corpus()
    exam = pick(rng, [exam for exam in corpus.exams.values() for _ in range(exam.share)])
    form = pick(rng, exam.forms)
    truth = _truth(rng, exam, form)
    nothing = NONE in (truth.get("finding"), truth.get("noise"))
    kind = pick(rng, [topic for topic in truth if topic in corpus.topics and not (nothing and topic in OF_FOUND)])
    chance = rng.random()
    line: Line = "full" if chance < FULL_SHARE else "short" if chance < FULL_SHARE + SHORT_SHARE else "empty"
    told = {"full": _full(rng, form, truth, kind), "short": f"{form.name}.", "empty": ""}[line]
    wordings = corpus.topics[kind].held_out if held_out else corpus.topics[kind].questions
    wordings = tuple(text for text in wordings if truth.get("finding") != NONE or "{finding}" not in text)
    return OpenCase(told, pick(rng, wordings).format(**truth), truth[kind], kind, line)


def _truth(rng: np.random.Generator, exam: Exam, form: Form) -> dict[str, str]:
    """Return what is true of one examination, by topic; topics that make no sense for it are absent."""
    truth = {topic: pick(rng, answers) for topic, answers in exam.answers.items()} | form.answers
    if exam.shades:
        truth["part"], truth["colour"] = pick(rng, tuple(exam.shades.items()))
    if exam.findings:
        truth["finding"], found = pick(rng, tuple(exam.findings.items()))
        truth["disease"] = found.disease
        if found.places:
            truth["place"] = pick(rng, found.places)
        side = next((side for side in SIDES if side in truth.get("place", "").split()), None)
        if side is not None:
            truth["side"] = side
        if not found.lesion:
            truth = {topic: answer for topic, answer in truth.items() if topic not in OF_LESIONS}
    return truth


def _full(rng: np.random.Generator, form: Form, truth: dict[str, str], asked: str) -> str:
    """Tell what is seen, the answer itself where a line can tell it, and by chance where and how large."""
    if truth.get("finding") == NONE:
        return f"{form.name}: no abnormality."
    if truth.get("noise") == NONE:
        return f"{form.name}: no noise."
    topics = open_corpus().topics
    needed = {asked, "finding", "noise"} | ({"place"} if asked == "side" else set())
    told = [topic for topic in TOLD if topic in truth and (topic in needed or (topic in BESIDE and rng.random() < 0.5))]
    phrases = [topics[topic].told.format(answer=truth[topic]) for topic in told]
    return f"{form.name}: {' '.join(phrases)}." if phrases else f"{form.name}."
