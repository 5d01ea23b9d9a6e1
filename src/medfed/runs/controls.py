"""The controls of :mod:`medfed.evaluation.controls` as predictors, and the injected LLM's answers to other wordings.

They need no training: reused heads, a count of abnormal values, and the injected LLM without the patient. The baseline
``lora`` is trained, in :mod:`medfed.runs.baselines`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from medfed.core.rng import numpy_rng
from medfed.data.cohort import Cohort
from medfed.evaluation import controls
from medfed.evaluation.abnormality import Extremes, abnormality
from medfed.evaluation.metrics import rank_correlation
from medfed.evaluation.scorers import SCORERS
from medfed.modalities.base import Modality
from medfed.models.base import FederatedModel
from medfed.records.folder import RunFolder
from medfed.records.schema import AnswerCheck, ControlFile, Json, Prediction, Reuse
from medfed.runs.predictors import BATCH_SIZE, HEADS, INJECTED, InjectedPredictor, Predictor, Responses, responses
from medfed.study.study import Study
from medfed.tasks.base import ClosedTask, Labels, Task, TaskSet, closed
from medfed.tasks.question_answering import QuestionAnswering

if TYPE_CHECKING:
    from medfed.injection.inject import Injector

WORDS_OF_A_TYPE = 2
"""Questions that begin with the same words are of one type."""
QUESTION = "question"
"""The modality that is the question itself; it stays where an example's other data are taken away."""


def control_predictors(
    study: Study, cohort: Cohort, injected: InjectedPredictor | None, model: FederatedModel
) -> list[Predictor]:
    """Return the injected LLM, if there is one, and the study's controls; ``model`` has the aggregated heads."""
    wanted, made = study.evaluation.controls, list[Predictor]()
    if injected is not None:
        made.append(Blind(injected, cohort.public, study.seed) if "blind" in wanted else injected)
    if "reuse" in wanted and study.federate:
        made.append(reused_heads(study, model))
    if "count" in wanted:
        made.append(abnormal_values(study, cohort))
    return made


def abnormal_values(study: Study, cohort: Cohort) -> AbnormalValues:
    """Return the count of abnormal values for the study's tasks."""
    return AbnormalValues({name: study.modality(name) for name in study.encoders}, cohort.public)


def reused_heads(study: Study, model: FederatedModel) -> ReusedHeads:
    """Return the heads of ``model`` for the study's unseen tasks; the texts of all its tasks are the corpus."""
    return ReusedHeads(model, study.train_tasks, tuple(_text(task) for task in study.tasks))


@dataclass(frozen=True)
class ReusedHeads:
    """Every trained head of two answers answers the unseen questions of two answers about the same modalities."""

    model: FederatedModel
    trained: Sequence[Task]
    corpus: tuple[str, ...]

    def __call__(self, examples: TaskSet, client: str | None = None) -> Responses:
        """Return the head's probabilities by trained task, and the nearest, the mean and the best in hindsight."""
        task = examples.task
        heads = [one for one in self.trained if not self.reason(task, one)]
        given = {one.name: self._respond(one, examples) for one in heads}
        if not given:
            return {}
        mean = np.mean([np.array(column) for column in given.values()], axis=0).tolist()
        chosen = {
            controls.NEAREST: given[str(self.choice(task).nearest)],
            controls.MEAN: mean,
            controls.IN_HINDSIGHT: given[best_of(task.truths(examples), given)],
        }
        return {**{f"{controls.REUSE}{name}": column for name, column in given.items()}, **chosen}

    def choice(self, task: Task) -> Reuse:
        """Return which head is nearest by text, and which cannot answer ``task``; the first on a tie."""
        reasons = {one.name: self.reason(task, one) for one in self.trained}
        texts = {one.name: _text(one) for one in self.trained if not reasons[one.name]}
        cosines = controls.similarities(_text(task), texts, self.corpus)
        nearest = max(cosines, key=lambda name: cosines[name], default=None)
        left_out = {name: why for name, why in reasons.items() if why}
        return Reuse(task=task.name, nearest=nearest, similarity=cosines, left_out=left_out)

    def reason(self, task: Task, trained: Task) -> str:
        """Return why the head of ``trained`` cannot answer ``task``; empty if it can."""
        if any(one.name == task.name for one in self.trained):
            return "the task was trained"
        for one, what in ((task, "the task"), (trained, "the head")):
            if not isinstance(one, ClosedTask) or one.metric_kind != "classification" or len(one.answers) != 2:
                return f"{what} has no two answers to one question"
        if trained.modalities != task.modalities:
            return f"the head reads {', '.join(trained.modalities)}; the task has {', '.join(task.modalities)}"
        return ""

    @torch.inference_mode()
    def _respond(self, trained: Task, examples: TaskSet) -> list[Json]:
        return responses(self.model, TaskSet(closed(trained), examples.data, examples.rows, examples.labels))


def best_of(truths: Sequence[Json], given: Mapping[str, Sequence[Json]]) -> str:
    """Return whose responses have the highest AUROC, the first on a tie or where it is not defined."""
    scorer = SCORERS["classification"]
    values = {name: scorer.points(truths, column)[scorer.primary] for name, column in given.items()}
    return max(values, key=lambda name: -1.0 if (value := values[name]) is None else value)


@dataclass(frozen=True)
class AbnormalValues:
    """How abnormal a patient's values are, by :func:`abnormality`; nothing is learned, and no label is read.

    The server knows what is usual from public examples of trained tasks with the same modalities. For an ECG the values
    are the lowest and the highest voltage of every lead. The response is a logistic function of the count, one half at
    the public median.
    """

    modalities: Mapping[str, Modality]
    public: Mapping[str, TaskSet]

    def __call__(self, examples: TaskSet, client: str | None = None) -> Responses:
        """Return the count as a probability; nothing where a question has not two answers, or no values."""
        if self.reason(examples.task):
            return {}
        pools = [pool for pool in self.public.values() if pool.task.modalities == examples.task.modalities]
        known: dict[str, Extremes] = {}
        for name in examples.task.modalities:
            parts = [part for pool in pools if (part := self._extremes(pool, name)) is not None]
            if parts:
                known[name] = (np.concatenate([low for low, _ in parts]), np.concatenate([high for _, high in parts]))
        usual = np.concatenate([self._count(pool, known) for pool in pools])
        low, middle, high = np.percentile(usual, (25, 50, 75))
        positive = 1 / (1 + np.exp(-(self._count(examples, known) - middle) / (high - low or 1.0)))
        return {controls.COUNT: np.stack([1 - positive, positive], 1).tolist()}

    def reason(self, task: Task) -> str:
        """Return why nothing is counted for ``task``; empty if it can be."""
        if not isinstance(task, ClosedTask) or task.metric_kind != "classification" or len(task.answers) != 2:
            return "the task has no two answers to one question"
        if not any(pool.task.modalities == task.modalities and len(pool) for pool in self.public.values()):
            return "no public example has its modalities"
        read = [self.modalities[name] for name in task.modalities if name in self.modalities]
        if all(modality.extremes(np.zeros((1, *modality.sample_shape), modality.dtype)) is None for modality in read):
            return f"no values to count in {', '.join(task.modalities)}"
        return ""

    def _count(self, examples: TaskSet, known: Mapping[str, Extremes]) -> Float[np.ndarray, " example"]:
        total = np.zeros(len(examples))
        for name, public in known.items():
            given = self._extremes(examples, name)
            total += abnormality(given, public) if given is not None else 0.0
        return total

    def _extremes(self, examples: TaskSet, name: str) -> Extremes | None:
        """Return the extremes of one modality; NaN where an example lacks it."""
        extremes = self.modalities[name].extremes(examples.data.samples[name][examples.rows])
        if extremes is None:
            return None
        present = examples.data.present[name][examples.rows][:, None]
        low, high = extremes
        return np.where(present, low, np.nan), np.where(present, high, np.nan)


@dataclass(frozen=True)
class Blind:
    """The injected LLM, and the same LLM without the patient: what it answers from the question alone.

    Where a task has one question, another patient's data give that patient's answer. So the answers change places, and
    the LLM does not run again.
    """

    injected: InjectedPredictor
    public: Mapping[str, TaskSet] = field(repr=False)
    seed: int

    def __call__(self, examples: TaskSet, client: str | None = None) -> Responses:
        """Return the LLM's responses, those with another patient's data, without any, and by the question's type."""
        given = self.injected(examples)
        order = numpy_rng(self.seed, examples.task.name, "blind").permutation(len(examples)).tolist()
        takes = controls.donors(examples.patients, order)
        if takes is not None and examples.labels.questions:
            given[controls.OTHER] = self._answer(with_data_of(examples, np.array(takes)))
        elif takes is not None:
            given[controls.OTHER] = [given[INJECTED][number] for number in takes]
        given[controls.NO_DATA] = self._without_data(examples)
        return given | self._by_type(examples)

    def _answer(self, examples: TaskSet) -> list[Json]:
        (answers,) = self.injected(examples).values()
        return answers

    def _without_data(self, examples: TaskSet) -> list[Json]:
        """Ask every distinct question once, about no patient."""
        questions = [examples.labels.questions[row] for row in examples.rows] if examples.labels.questions else []
        first: dict[str, int] = {}
        for number, question in enumerate(questions or [""]):
            first.setdefault(question, number)
        distinct = without_data(examples.holding(examples.rows[list(first.values())]))
        answers = dict(zip(first, self._answer(distinct), strict=True))
        return [answers[question] for question in questions or [""] * len(examples)]

    def _by_type(self, examples: TaskSet) -> Responses:
        """Return the most frequent public answer to questions that begin alike, or to all; nothing without any."""
        questions, answers = examples.labels.questions, examples.task.answers
        counts: dict[str, Counter[int]] = {}
        for pool in self.public.values():
            if questions and pool.labels.questions and pool.task.answers == answers:
                for row in pool.rows:
                    for kind in (question_type(pool.labels.questions[row]), ""):
                        counts.setdefault(kind, Counter())[int(pool.labels.targets[row])] += 1
        if not counts:
            return {}
        column: list[Json] = []
        for row in examples.rows:
            held = counts.get(question_type(questions[row]), counts[""])
            shares = [held[number] / held.total() for number in range(len(answers))]
            text = answers[max(range(len(answers)), key=shares.__getitem__)]
            worded = isinstance(examples.task, QuestionAnswering)
            column.append({"text": text, "probabilities": shares} if worded else shares)
        return {controls.BY_TYPE: column}


def question_type(question: str) -> str:
    """Return the first words of a question."""
    return " ".join(question.lower().split()[:WORDS_OF_A_TYPE])


def with_data_of(examples: TaskSet, takes: Int[np.ndarray, " example"]) -> TaskSet:
    """Return ``examples`` with the data of those at ``takes``; question, answer and patient stay."""
    data, rows, labels = examples.data, examples.rows, examples.labels
    names = [name for name in data.samples if name in examples.task.modalities]
    source = {name: rows if name == QUESTION else rows[takes] for name in names}
    moved = replace(
        data,
        index=data.index[rows.tolist()],
        samples={name: data.samples[name][source[name]] for name in names},
        present={name: data.present[name][source[name]] for name in names},
    )
    local = Labels(labels.targets[rows], tuple(labels.questions[row] for row in rows) if labels.questions else ())
    return TaskSet(examples.task, moved, np.arange(len(rows)), local)


def without_data(examples: TaskSet) -> TaskSet:
    """Return ``examples`` of which nothing is present but the question."""
    present = {
        name: there if name == QUESTION else np.zeros_like(there) for name, there in examples.data.present.items()
    }
    data = replace(examples.data, present=present)
    return TaskSet(examples.task, data, examples.rows, examples.labels)


def control_file(
    study: Study, run: RunFolder, cohort: Cohort, injector: Injector | None, heads: ReusedHeads
) -> ControlFile:
    """Return ``controls.json`` of the predictions that ``run`` has; an injected LLM answers other wordings for it."""
    wanted, lines = (
        study.evaluation.controls if injector else ("reuse", "count"),
        {task.name: run.predictions(task.name) for task in study.tasks},
    )
    reuse = []
    for task in study.tasks if "reuse" in wanted else ():
        if task.name not in study.train and isinstance(task, ClosedTask):
            choice = heads.choice(task)
            given = {name: _column(lines[task.name], f"{controls.REUSE}{name}") for name in choice.similarity}
            given = {name: column for name, column in given.items() if column}
            best = best_of([line.truth for line in lines[task.name]], given) if given else None
            reuse.append(choice.model_copy(update={"best": best}))
    made = abnormal_values(study, cohort)
    absent = {task.name: _absent(made, task, lines[task.name], wanted) for task in study.tasks}
    checks = []
    for task in study.tasks if "answers" in wanted else ():
        yes_no = isinstance(task, ClosedTask) and task.metric_kind == "classification" and len(task.answers) == 2
        if injector is not None and yes_no:
            checks.append(_check(study, cohort.test[task.name], injector, lines[task.name]))
    absent = {task: reasons for task, reasons in absent.items() if reasons}
    return ControlFile(reuse=tuple(reuse), absent=absent, answers=tuple(checks))


def _absent(made: AbnormalValues, task: Task, lines: Sequence[Prediction], wanted: Iterable[str]) -> dict[str, str]:
    """Return control → why it has no answer to ``task``."""
    has, reasons = lines[0].responses, {}
    if "count" in wanted and controls.COUNT not in has:
        reasons[controls.COUNT] = made.reason(task)
    if "blind" in wanted and controls.OTHER not in has:
        reasons[controls.OTHER] = "one patient has more than half of the test examples"
    if "blind" in wanted and controls.BY_TYPE not in has and isinstance(task, QuestionAnswering):
        reasons[controls.BY_TYPE] = "no public example has a question of its own with these answers"
    return reasons


def _check(study: Study, examples: TaskSet, injector: Injector, lines: Sequence[Prediction]) -> AnswerCheck:
    """Compare the LLM's answers with every head's, and with its own to the question negated and in other words.

    Another wording has no calibration of its own. Of an untrained task the log-odds of each wording are therefore
    centred on their mean over these examples, as calibration does on public ones.
    """
    task, mine = examples.task, np.array(_column(lines, INJECTED))
    heads = [name for name in lines[0].responses if _is_head(name, study)]
    ranks = {name: rank_correlation(mine[:, 1], np.array(_column(lines, name))[:, 1]) for name in heads}
    size = min(len(examples), study.evaluation.num_rephrased)
    rows = np.sort(numpy_rng(study.seed, task.name, "rephrased").choice(len(examples), size, replace=False))
    centred = task.name not in study.train

    def yes(question: str) -> Bool[np.ndarray, " example"]:
        changed = task.model_copy(update={"question": question})
        few = TaskSet(changed, examples.data, examples.rows[rows], examples.labels)
        return _yes(injector.score_set(few, BATCH_SIZE).double().numpy(), centred=centred)

    before = _yes(mine[rows], centred=centred)
    same = [float(np.mean(yes(question) == before)) for question in task.reworded]
    return AnswerCheck(
        task=task.name,
        rank_correlation=ranks,
        n=size,
        negation=float(np.mean(yes(task.opposite) != before)),
        paraphrases=float(np.mean(same)),
        opposite=task.opposite,
        reworded=task.reworded,
    )


def _yes(probabilities: Float[np.ndarray, "example 2"], *, centred: bool) -> Bool[np.ndarray, " example"]:
    """Return whose answer is the second one."""
    odds = np.diff(np.log(np.maximum(probabilities, 1e-300)), axis=1)[:, 0]
    return np.asarray(odds - (odds.mean() if centred else 0.0) > 0)


def _is_head(model: str, study: Study) -> bool:
    return model == HEADS or (model.startswith(controls.REUSE) and model.removeprefix(controls.REUSE) in study.train)


def _column(lines: Sequence[Prediction], model: str) -> list[Json]:
    return [line.responses[model] for line in lines if model in line.responses]


def _text(task: Task) -> str:
    return f"{task.task_description} {task.question}"
