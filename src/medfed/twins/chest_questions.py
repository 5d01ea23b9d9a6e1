"""Questions about a drawn film: true facts, put into words, in the shares of a real question set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from medfed.twins.chest_cohorts import Film
from medfed.twins.chest_facts import Fact, facts_of

CHOICES = ("left_or_right", "lung_or_heart", "normal_or_abnormal", "lung_heart_larger")
MOST_QUESTIONS = 4


class Vocabulary(NamedTuple):
    """A language.

    Attributes:
        terms: term → word; a term that is missing stands for itself.
        templates: topic → wordings with placeholders. Topics without wordings give no question.
        comma: separator of the parts of an answer.
    """

    terms: Mapping[str, str]
    templates: Mapping[str, tuple[str, ...]]
    comma: str = ", "


class Mix(NamedTuple):
    """Shares of the kinds of question.

    Attributes:
        groups: share of questions answered by ``yes``, by ``no``, by a ``choice`` of options, and ``open`` ones.
        topics: topic → (the dataset's name for such a question, weight within its group).
    """

    groups: Mapping[str, float]
    topics: Mapping[str, tuple[str, int]]


class Question(NamedTuple):
    """A question, its true answer, the dataset's name for its kind, and whether it is closed."""

    text: str
    answer: str
    kind: str
    closed: bool


def draw_questions(
    film: Film, vocabulary: Vocabulary, mix: Mix, count: int, rng: np.random.Generator
) -> list[Question]:
    """Draw ``count`` different questions about ``film``; the group first, among those that have a true fact."""
    groups: dict[str, list[Fact]] = {name: [] for name in mix.groups}
    for fact in facts_of(film):
        if fact.topic in mix.topics and fact.topic in vocabulary.templates:
            groups[_group(fact)].append(fact)
    drawn = []
    for _ in range(count):
        name = _weighted({name: mix.groups[name] for name, facts in groups.items() if facts}, rng)
        topics = [fact.topic for fact in groups[name]]
        topic = _weighted({topic: float(mix.topics[topic][1]) for topic in topics}, rng)
        places = [place for place, other in enumerate(topics) if other == topic]
        fact = groups[name].pop(places[int(rng.integers(len(places)))])
        drawn.append(_worded(fact, vocabulary, mix.topics[topic][0], name != "open", rng))
    return drawn


def _group(fact: Fact) -> str:
    if fact.answer in (("yes",), ("no",)):
        return fact.answer[0]
    return "choice" if fact.topic in CHOICES else "open"


def _weighted(weights: Mapping[str, float], rng: np.random.Generator) -> str:
    shares = np.array(list(weights.values()))
    return list(weights)[int(rng.choice(len(shares), p=shares / shares.sum()))]


def _worded(fact: Fact, vocabulary: Vocabulary, kind: str, closed: bool, rng: np.random.Generator) -> Question:
    wordings = vocabulary.templates[fact.topic]
    about = {place: vocabulary.terms.get(term, term) for place, term in fact.about.items()}
    text = wordings[int(rng.integers(len(wordings)))].format(**about)
    answer = vocabulary.comma.join(vocabulary.terms.get(term, term) for term in fact.answer)
    return Question(text[:1].upper() + text[1:], answer, kind, closed)
