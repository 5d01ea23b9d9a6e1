"""Answer a picture's question for one patient by weights that were asked before: a weighted sum, and its reason."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from medfed.core.errors import StudyError
from medfed.core.rules import Amount
from medfed.evaluation.abnormality import Usual
from medfed.evaluation.controls import WORDS
from medfed.findings.meaning import Likelihood, answered, reason
from medfed.findings.reading import Scale
from medfed.records.schema import PictureWeights, WordsFile
from medfed.study.study import Study

Raw = Mapping[str, Shaped[np.ndarray, "..."]]
"""Arrays of one patient by modality, in physical units, as files are read."""


class PatientAnswer(NamedTuple):
    """The probability of yes, what speaks for it, and its sentence: "kidney failure: high creatinine"."""

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


def answer_patient(study: Study, given: PictureWeights, raw: Raw, model: str = WORDS) -> PatientAnswer:
    """Return the answer to the task of ``given`` for one patient.

    Raises StudyError if a weight is of a finding that the study has not, DataError if an array is not its modality's.
    """
    weights = given.weights.get(model, {})
    findings = {one.name: one for one in (study.words.findings if study.words else ())}
    if unknown := sorted(weights.keys() - findings.keys()):
        near = difflib.get_close_matches(unknown[0], findings, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "weigh findings of the study"
        raise StudyError(f"no finding {unknown[0]!r}", where=f"weights of {given.task!r}", hint=hint)
    chosen = [one for one in findings.values() if one.name in given.scale]
    usual = [given.scale[one.name] for one in chosen]
    scale = Scale(tuple(chosen), Usual(np.array([one.middle for one in usual]), np.array([one.width for one in usual])))
    measures: dict[str, float] = {}
    for name, array in raw.items():
        modality = study.modality(name)
        measured = modality.measures(modality.prepare(array)[None])
        measures |= {measure: float(values[0]) for measure, values in measured.items()}
    values = [
        Amount(one.measure).values(lambda measure: np.array([measures.get(measure, np.nan)]))[0] for one in chosen
    ]
    degrees, names = scale.degrees(np.array([values])), [one.name for one in chosen]
    listed = np.array([weights.get(name, 0.0) for name in names])
    probability = Likelihood(given.middle, given.width)(answered(listed, degrees))[0][1]
    reasons = reason(names, listed, degrees[0])
    sentence = f"{given.picture}: {', '.join(reasons) or 'no finding speaks for it'}"
    return PatientAnswer(given.task, given.question, probability, reasons, sentence)
