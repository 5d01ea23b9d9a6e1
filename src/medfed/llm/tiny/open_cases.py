"""Open questions about an examination, composed from ``corpus/open.toml``, to train the tiny LLM.

A case is a context, a question, and an answer of a few words. A full context names the examination, the finding and its
place. A short one names the examination ("Chest X-ray."); the answer is then the usual one. An empty context stands for
an image of projected tokens: the answer rests on the question. ``cases.py`` has the closed counterpart.

No label of any example is here: the text is about medicine, not about the data.
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
Detail = Literal["full", "short", "empty"]
FULL_SHARE, SHORT_SHARE = 0.4, 0.4
SIDES = ("right", "left", "both")
CONTEXT_TOPICS = ("noise", "symptom", "rhythm", "axis", "finding", "lead", "place", "size", "number")
"""Topics that a full context can hold, in its order."""
EXTRA_TOPICS = frozenset({"lead", "place", "size", "number"})
"""Topics that it may hold although the question is about another."""
OF_FINDINGS = frozenset({"side", "place", "lead"})
OF_LESIONS = frozenset({"size", "number", "density"})
"""Topics of questions only where there is a finding, or a lesion."""


class Topic(BaseModel):
    """A kind of question; fields as explained in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    questions: tuple[str, ...] = Field(min_length=1)
    held_out: tuple[str, ...] = Field(min_length=1)
    phrase: str = Field(default="", alias="told")


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
        """Every answer in the file."""
        listed = [answer for some in self.answers.values() for answer in some]
        followed = [answer for form in self.forms for answer in form.answers.values()]
        seen = [word for name, finding in self.findings.items() for word in (name, finding.disease, *finding.places)]
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
    """A context, a question, the right answer, its topic, and the detail of the context."""

    context: str
    question: str
    answer: str
    kind: str
    detail: Detail


@cache
def open_corpus() -> OpenCorpus:
    """Read the topics and examinations."""
    return OpenCorpus.model_validate(tomllib.loads(OPEN.read_text(encoding="utf-8")))


def compose_open(rng: np.random.Generator, *, held_out: bool = False) -> OpenCase:
    """Draw a case; with ``held_out``, in a wording that no training case has."""
    corpus = open_corpus()
    exam = pick(rng, [exam for exam in corpus.exams.values() for _ in range(exam.share)])
    form = pick(rng, exam.forms)
    truth = _truth(rng, exam, form)
    nothing = NONE in (truth.get("finding"), truth.get("noise"))
    kind = pick(rng, [topic for topic in truth if topic in corpus.topics and not (nothing and topic in OF_FINDINGS)])
    chance = rng.random()
    detail: Detail = "full" if chance < FULL_SHARE else "short" if chance < FULL_SHARE + SHORT_SHARE else "empty"
    context = {"full": _full(rng, form, truth, kind), "short": f"{form.name}.", "empty": ""}[detail]
    wordings = corpus.topics[kind].held_out if held_out else corpus.topics[kind].questions
    wordings = tuple(text for text in wordings if truth.get("finding") != NONE or "{finding}" not in text)
    return OpenCase(context, pick(rng, wordings).format(**truth), truth[kind], kind, detail)


def _truth(rng: np.random.Generator, exam: Exam, form: Form) -> dict[str, str]:
    """Return what is true of one examination, by topic; topics that make no sense for it are absent."""
    truth = {topic: pick(rng, answers) for topic, answers in exam.answers.items()} | form.answers
    if exam.shades:
        truth["part"], truth["colour"] = pick(rng, tuple(exam.shades.items()))
    if exam.findings:
        truth["finding"], finding = pick(rng, tuple(exam.findings.items()))
        truth["disease"] = finding.disease
        if finding.places:
            truth["place"] = pick(rng, finding.places)
        side = next((side for side in SIDES if side in truth.get("place", "").split()), None)
        if side is not None:
            truth["side"] = side
        if not finding.lesion:
            truth = {topic: answer for topic, answer in truth.items() if topic not in OF_LESIONS}
    return truth


def _full(rng: np.random.Generator, form: Form, truth: dict[str, str], kind: str) -> str:
    """Return a context with the finding, the answer itself if it can hold it, and by chance place and size."""
    if truth.get("finding") == NONE:
        return f"{form.name}: no abnormality."
    if truth.get("noise") == NONE:
        return f"{form.name}: no noise."
    topics = open_corpus().topics
    needed = {kind, "finding", "noise"} | ({"place"} if kind == "side" else set())
    held = [t for t in CONTEXT_TOPICS if t in truth and (t in needed or (t in EXTRA_TOPICS and rng.random() < 0.5))]
    phrases = [topics[topic].phrase.format(answer=truth[topic]) for topic in held]
    return f"{form.name}: {' '.join(phrases)}." if phrases else f"{form.name}."
