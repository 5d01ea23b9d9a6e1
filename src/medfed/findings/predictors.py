"""Answers to unseen questions by findings that an LLM weighs, and the controls next to them, as predictors of a run.

- ``words``: the weights that the study's LLM gives. ``words/<name>``: those of another LLM.
- ``words/equal``: all findings weigh alike: a count of what holds. ``words+equal``: its probability and that of
  ``words``, averaged.
- ``words/other``: the weights of another question. ``words/nearest``: the one finding that is nearest in meaning.
  ``words/similar``: similarity in meaning in place of an answer, else as ``words``.
- ``words/ceiling``: weights that are fitted with labels of the test patients, each scored by a fit on others. It is a
  bound, and no control: it says whether findings or meaning are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from medfed.core.rng import numpy_rng
from medfed.evaluation import controls
from medfed.findings.meaning import (
    Ask,
    Likelihood,
    Odds,
    about,
    answered,
    other_picture,
    strongest,
    weights_of,
)
from medfed.findings.reading import Scale, Values, values_of
from medfed.records.schema import FindingScale, Json, PictureWeights, WordsFile
from medfed.study.words import Finding, WordsSettings
from medfed.tasks.base import ClosedTask, Task, TaskSet

Responses = dict[str, list[Json]]
NUM_FOLDS = 5
"""Parts of the patients between which the ceiling's fits are crossed."""
RIDGE = 1.0
"""The ceiling's penalty: scikit-learn's C of a logistic regression on strengths."""


def picture_of(task: Task) -> str:
    """Return the name that stands for the task in questions to an LLM."""
    return getattr(task, "picture", "") or task.title.lower()


def reason_against(task: Task, findings: Sequence[Finding]) -> str:
    """Return why findings cannot answer ``task``; empty if they can."""
    if not isinstance(task, ClosedTask) or task.metric_kind != "classification" or len(task.answers) != 2:
        return "the task has no two answers to one question"
    if not any(finding.modality in task.modalities for finding in findings):
        return f"no finding is read off {', '.join(task.modalities)}"
    return ""


@dataclass(frozen=True)
class Reader:
    """The findings of a study's tasks, on the scale of public patients of trained tasks with the same data."""

    findings: tuple[Finding, ...]
    public: Mapping[str, TaskSet] = field(repr=False)

    def scale(self, task: Task) -> Scale:
        """Return the scale for ``task``; without public patients it is that of the published limits."""
        return Scale.of(self.findings, self.public_values(task))

    def public_values(self, task: Task) -> Values:
        """Return the findings' values of public patients who have the task's modalities, each patient once."""
        pools = [pool for pool in self.public.values() if set(pool.task.modalities) & set(task.modalities)]
        parts = [values_of(self.findings, pool) for pool in {id(pool.data): pool for pool in pools}.values()]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.findings)))

    def usable(self, task: Task) -> Bool[np.ndarray, " finding"]:
        """Return which findings may support ``task``."""
        named = getattr(task, "findings", ())
        return np.array([one.modality in task.modalities and (not named or one.name in named) for one in self.findings])


@dataclass(frozen=True)
class Words:
    """Findings weighed by LLMs and other sources of meaning; a predictor.

    ``sources`` are model → the odds that it gives the findings; ``tasks`` are all that are answered, in order.
    """

    reader: Reader
    settings: WordsSettings
    sources: Mapping[str, Ask] = field(repr=False)
    tasks: tuple[Task, ...]
    seed: int = 0

    def __call__(self, examples: TaskSet, client: str | None = None) -> Responses:
        """Return the answers of all sources and controls; nothing to a task that findings cannot answer."""
        task = examples.task
        if task.name not in [one.name for one in self.tasks]:
            return {}
        scale, public = self.reader.scale(task), self.reader.public_values(task)
        strengths, usual = (scale.strengths(values) for values in (values_of(self.reader.findings, examples), public))
        made: Responses = {}
        for model, weights in self.weights(task).items():
            made[model] = Likelihood.of(answered(weights, usual))(answered(weights, strengths))
        both = [made[controls.WORDS], made[controls.EQUAL]]
        made[controls.WORDS_EQUAL] = np.mean(both, axis=0).tolist()
        usable = np.nan_to_num(strengths[:, self.reader.usable(task)])
        made |= ceiling(usable, np.array(task.truths(examples)), examples.patients, self.seed)
        return made

    def weights(self, task: Task) -> dict[str, Odds]:
        """Return model → the weights of all findings for ``task``."""
        usable, picture = self.reader.usable(task), picture_of(task)
        made: dict[str, Odds] = {controls.EQUAL: usable.astype(np.float64)}
        for model, ask in self.sources.items():
            odds = about(ask, picture, self.settings.references)
            made[model] = weights_of(odds, usable, self.settings)
            if model == controls.SIMILAR:
                made[controls.FINDING] = nearest(ask(picture), usable)
        names = [picture_of(one) for one in self.tasks]
        if (other := other_picture(names, picture)) is not None:
            odds = about(self.sources[controls.WORDS], other, self.settings.references)
            made[controls.OTHER_PICTURE] = weights_of(odds, usable, self.settings)
        return made

    def record(self, llms: Mapping[str, str]) -> WordsFile:
        """Return ``words.json``: the scale and the weights of every task; ``llms`` are model → the LLM's name."""
        names = [finding.name for finding in self.reader.findings]
        pictures = []
        for task in self.tasks:
            scale, weights = self.reader.scale(task), self.weights(task)
            usual = scale.strengths(self.reader.public_values(task))
            function = Likelihood.of(answered(weights[controls.WORDS], usual))
            scales = {
                one.name: FindingScale(middle=float(middle), width=float(width), limit=one.limit)
                for one, middle, width, used in zip(
                    self.reader.findings, *scale.usual, self.reader.usable(task), strict=True
                )
                if used
            }
            pictures.append(
                PictureWeights(
                    task=task.name,
                    picture=picture_of(task),
                    question=task.question,
                    weights={
                        model: dict(strongest(names, values))
                        for model, values in weights.items()
                        if model != controls.EQUAL
                    },
                    scale=scales,
                    middle=function.middle,
                    width=function.width,
                )
            )
        return WordsFile(llms=dict(llms), pictures=tuple(pictures))


def nearest(similarity: Odds, usable: Bool[np.ndarray, " finding"]) -> Odds:
    """Return weight 1 for the usable finding of the highest similarity, 0 for all others."""
    weights = np.zeros(len(similarity))
    weights[int(np.argmax(np.where(usable, similarity, -np.inf)))] = 1.0
    return weights


def ceiling(
    strengths: Float[np.ndarray, "example finding"],
    truths: Int[np.ndarray, " example"],
    patients: Sequence[str],
    seed: int,
) -> Responses:
    """Return the answers of weights that are fitted with labels, each patient's by a fit on the others.

    Patients are dealt to :data:`NUM_FOLDS` parts. Nothing is returned where a fit would see one answer only.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 (a second, for runs that ask for it)

    names = sorted(set(patients))
    order = numpy_rng(seed, "ceiling").permutation(len(names))
    fold_of = {names[place]: number % NUM_FOLDS for number, place in enumerate(order.tolist())}
    folds = np.array([fold_of[patient] for patient in patients])
    given = np.full((len(patients), 2), np.nan)
    for fold in range(NUM_FOLDS):
        fitted, held = folds != fold, folds == fold
        if len(np.unique(truths[fitted])) < 2:
            return {}
        if held.any():
            model = LogisticRegression(C=RIDGE, max_iter=2000).fit(strengths[fitted], truths[fitted])
            given[held] = model.predict_proba(strengths[held])
    return {controls.CEILING: given.tolist()}
