"""Answer a picture's question for one patient by the weights of a run: a weighted sum, and its reason."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from medfed.core.errors import StudyError
from medfed.core.rules import Amount
from medfed.evaluation.abnormality import Usual
from medfed.evaluation.controls import WORDS
from medfed.findings.meaning import Likelihood, answered, reason
from medfed.findings.reading import Scale
from medfed.modalities.base import Modality
from medfed.records.schema import PictureWeights, WordsFile
from medfed.study.words import Finding

Raw = Mapping[str, Shaped[np.ndarray, "..."]]
"""Arrays of one patient by modality, in physical units, as files are read."""


class PatientAnswer(NamedTuple):
    """The probability of yes, the findings that support it, and a sentence: "kidney failure: high creatinine"."""

    task: str
    question: str
    probability: float
    reasons: tuple[str, ...]
    sentence: str


def weights_for(words: WordsFile, task: str) -> PictureWeights:
    """Return the weights of ``task``. Raises StudyError if the file has none."""
    by_name = {one.task: one for one in words.pictures}
    if task not in by_name:
        near = difflib.get_close_matches(task, by_name, n=3, cutoff=0.3)
        hint = f"did you mean {near[0]!r}?" if near else f"there are weights of {', '.join(by_name) or 'none'}"
        raise StudyError(f"no weights of a task {task!r}", hint=hint)
    return by_name[task]


def answer_patient(
    findings: Sequence[Finding], modality_of: Callable[[str], Modality], given: PictureWeights, raw: Raw
) -> PatientAnswer:
    """Return the answer to the task of ``given`` for one patient, by the findings of its study.

    Raises StudyError if a weight is of another finding, DataError if an array is not its modality's.
    """
    weights = given.weights.get(WORDS, {})
    by_name = {one.name: one for one in findings}
    if unknown := sorted(weights.keys() - by_name.keys()):
        near = difflib.get_close_matches(unknown[0], by_name, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "weigh findings of the study"
        raise StudyError(f"no finding {unknown[0]!r}", where=f"weights of {given.task!r}", hint=hint)
    chosen = [one for one in findings if one.name in given.scale]
    usual = [given.scale[one.name] for one in chosen]
    scale = Scale(tuple(chosen), Usual(np.array([one.middle for one in usual]), np.array([one.width for one in usual])))
    measures: dict[str, float] = {}
    for name, array in raw.items():
        modality = modality_of(name)
        measured = modality.measures(modality.prepare(array)[None])
        measures |= {measure: float(values[0]) for measure, values in measured.items()}
    values = [
        Amount(one.measure).values(lambda measure: np.array([measures.get(measure, np.nan)]))[0] for one in chosen
    ]
    strengths, names = scale.strengths(np.array([values])), [one.name for one in chosen]
    listed = np.array([weights.get(name, 0.0) for name in names])
    probability = Likelihood(given.middle, given.width)(answered(listed, strengths))[0][1]
    reasons = reason(names, listed, strengths[0])
    sentence = f"{given.picture}: {', '.join(reasons) or 'no finding supports it'}"
    return PatientAnswer(given.task, given.question, probability, reasons, sentence)
