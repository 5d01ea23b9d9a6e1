"""The models that could embarrass an injected LLM: their names, and what is computed about them without a model.

- ``reuse/<task>``: the head of a trained task answers another question about the same modalities. ``reuse/nearest`` is
  the one whose text is nearest, chosen without labels; ``reuse/mean`` is the mean of all. ``reuse/best`` is the best in
  hindsight. Labels of the test set chose it, so it is printed and no verdict counts it.
- ``count``: how far a patient's highest and lowest values lie from those of others; nothing is learned.
- ``blind/other``: the injected LLM with another patient's data; ``blind/none``: with none. ``blind/type`` is the most
  frequent public answer to questions that begin alike.
- ``words``: findings read off the data, weighed by what the LLM says they mean; no patient enters it. ``words/equal``
  has the same weight for all, ``words/other`` the weights of another question. ``words/nearest`` is the one finding
  that is nearest in meaning, ``words/similar`` has similarity in place of an answer. ``words/ceiling`` has weights
  fitted with labels of other test patients: a bound.
- ``lora``: the LLM with one LoRA of rank P·r in place of P routed experts of rank r.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

INJECTED = "fedkim"
"""The injected LLM's name in scores."""
REUSE, BLIND = "reuse/", "blind/"
NEAREST, IN_HINDSIGHT, MEAN = f"{REUSE}nearest", f"{REUSE}best", f"{REUSE}mean"
OTHER, NO_DATA, BY_TYPE = f"{BLIND}other", f"{BLIND}none", f"{BLIND}type"
COUNT, LORA = "count", "lora"
WORDS, WORDS_EQUAL = "words", "words+equal"
"""Findings that an LLM weighs, alone and together with the count of those that hold."""
EQUAL = f"{WORDS}/equal"
CEILING, OTHER_PICTURE, FINDING, SIMILAR = (f"{WORDS}/{name}" for name in ("ceiling", "other", "nearest", "similar"))
WITHOUT_LLM = ("federated", "heads", "local")
"""Models that were trained on the same task without an LLM; centralised training is a bound, and no control."""
JUDGED = (*WITHOUT_LLM, NEAREST, MEAN, COUNT, OTHER, NO_DATA, BY_TYPE, LORA)
"""The controls that the LLM has to beat; each is chosen before a test label is read."""
BOUNDS = ("centralised", IN_HINDSIGHT)
"""Models that the LLM need not beat: privacy rules out the one, and test labels chose the other."""


def is_control(model: str) -> bool:
    """Whether ``model`` is one of this module's, by its name."""
    return model.startswith((REUSE, BLIND, WORDS)) or model in (COUNT, LORA)


def leading(models: Iterable[str]) -> str:
    """Return the model that others are compared with: the injected LLM, or else the findings that an LLM weighs."""
    listed = list(models)
    return WORDS if INJECTED not in listed and WORDS in listed else INJECTED


def similarities(text: str, others: Mapping[str, str], corpus: Sequence[str]) -> dict[str, float]:
    """Return the cosine of TF-IDF vectors between ``text`` and each of ``others``; frequencies are from ``corpus``.

    A word's weight is its count times ln((1 + n) / (1 + texts with it)) + 1. No label, model or test example is read.
    """
    frequencies = Counter(word for one in corpus for word in set(_words(one)))
    weight = {word: math.log((1 + len(corpus)) / (1 + number)) + 1 for word, number in frequencies.items()}
    rare = math.log(1 + len(corpus)) + 1

    def vector(one: str) -> dict[str, float]:
        counts = Counter(_words(one))
        values = {word: number * weight.get(word, rare) for word, number in sorted(counts.items())}
        length = math.sqrt(sum(value**2 for value in values.values())) or 1.0
        return {word: value / length for word, value in values.items()}

    mine = vector(text)
    return {name: sum(mine.get(word, 0.0) * v for word, v in vector(one).items()) for name, one in others.items()}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def donors(patients: Sequence[str], order: Sequence[int]) -> list[int] | None:
    """Return for every example another patient's example, each taken once; None where one patient has over half.

    ``order`` is a permutation of the examples, and patients are sorted by their first place in it. Each example takes
    the one that lies as many places on as the largest patient has examples.
    """
    place: dict[str, int] = {}
    for number in order:
        place.setdefault(patients[number], len(place))
    rows = sorted(order, key=lambda number: place[patients[number]])
    step = max(Counter(patients).values(), default=0)
    if 2 * step > len(rows):
        return None
    taken = dict(zip(rows, [*rows[step:], *rows[:step]], strict=True))
    return [taken[number] for number in range(len(rows))]
