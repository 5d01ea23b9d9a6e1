"""The work of a study's LLM, counted before a run: prompts of every task, rehearsed texts, examinations, baselines.

Nothing is decoded: examples are counted on the datasets' indexes, positions by the tokenizer. Every open answer counts
as if it went on to its limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from statistics import mean
from typing import NamedTuple

import torch

from medfed.core.catalog import DATASETS
from medfed.data.layout import SERVER_SPLITS, Division, rosters, server_rows
from medfed.data.sources import Sources
from medfed.data.split import assign_splits
from medfed.datasets.decoded import Decoded
from medfed.evaluation.controls import LORA
from medfed.injection.encode import token_dims
from medfed.injection.retention import forms_of
from medfed.llm.knowledge import Chosen
from medfed.llm.language_model import continuations
from medfed.llm.likelihood import TOKENS_AT_ONCE
from medfed.llm.prompt import TextTokenizer, build_prompt
from medfed.llm.trie import packs
from medfed.models.multimodal import MultimodalModel
from medfed.runs.federation import build_multimodal
from medfed.runs.forecast.trial import Shape, Work
from medfed.runs.predictors import BATCH_SIZE
from medfed.study.injection import InjectionSettings, Order
from medfed.study.study import Study
from medfed.tasks.base import ClosedTask, Task
from medfed.tasks.question_answering import QuestionAnswering

_ANSWER = 16
"""Tokens of an answer in words that injection keeps."""
_QUESTIONS = 200
"""Of a task with questions of their own so many are read, spread evenly over their lengths."""


class Part(NamedTuple):
    """Some of a run's work, and what it is for."""

    what: str
    work: Work


@dataclass(frozen=True)
class Length:
    """Positions of a task's prompts with their answers; ``shared`` begin all of them, and ``rows`` have logits."""

    positions: float
    shared: int
    rows: int

    def learned(self, count: float) -> Work:
        """Return the work of ``count`` examples forward and backward."""
        return Work(learned=count * self.positions, learned_rows=count * self.rows)

    def scored(self, count: float, *, sharing: bool) -> Work:
        """Return the work to score ``count`` examples; with ``sharing`` a batch reads once what begins them all."""
        positions = self.positions - self.shared * (1 - 1 / BATCH_SIZE) * sharing
        return Work(read=count * positions, rows=count * self.rows)

    def answered(self, count: float, max_new_tokens: int) -> Work:
        """Return the work to answer ``count`` questions in words, if all go on to the limit."""
        return Work(read=count * self.positions, rows=count, tokens=count * (max_new_tokens - 1))


@dataclass(frozen=True)
class Workload:
    """The work of the LLM in a run.

    Attributes:
        num_steps: injection steps over all rounds.
        num_closed: closed questions that are scored, those of the development set and of the controls included.
        num_open: questions that are answered in words.
        num_calibrating: public examples on which answers to untrained closed questions are calibrated, once per task.
        shape: of a batch of the longest prompts that are trained.
        longest: positions of the longest prompt of all.
        dims: widths of the tokens.
        parts: all work, in the order of the lines.
    """

    num_steps: int
    num_closed: int
    num_open: int
    num_calibrating: int
    shape: Shape
    longest: int
    dims: Mapping[str, int]
    parts: Sequence[Part]


def workload(study: Study, sources: Sources, tokenizer: TextTokenizer, examined: Sequence[Chosen] = ()) -> Workload:
    """Count the work of ``study`` on its datasets' indexes, and on the ``examined`` sets of questions.

    Unreadable and missing examples count too, and so does the baseline ``lora``, which another run may have left.
    """
    count = _Count(study, sources, tokenizer)
    closed, opened = count.closed(controls=True), count.open(controls=True)
    pools, steps, limit = count.pools(), count.steps(), study.evaluation.max_new_tokens
    scoring, answering, calibrating = count.scoring(closed), count.answering(opened), count.scoring(pools)
    parts = [
        Part(f"for {steps:,} injection steps", count.learning()),
        Part(f"to score {sum(closed.values()):,} closed questions", scoring),
        Part(f"to calibrate on {sum(pools.values()):,} public examples", calibrating),
        Part(f"to answer {sum(opened.values()):,} open questions, if all go on to {limit} tokens", answering),
    ]
    if examined:
        looks, questions = looks_of(study), sum(len(questions) for _, questions in examined)
        look = examination_work(examined, tokenizer, study.injection.order)
        parts.append(Part(f"to examine the LLM {looks} times, {questions:,} questions each", look.times(looks)))
    if LORA in study.baselines:
        again = count.scoring(count.closed(controls=False)), count.answering(count.open(controls=False))
        what = "for one LoRA of equal rank, its steps and its answers"
        parts.append(Part(what, _sum([count.learning(), calibrating, *again])))
    return Workload(
        num_steps=steps,
        num_closed=sum(closed.values()),
        num_open=sum(opened.values()),
        num_calibrating=sum(pools.values()),
        shape=count.shape,
        longest=count.longest,
        dims=count.dims,
        parts=parts,
    )


class _Count:
    """The work of a study: counts by task, and the length of every task's prompts."""

    def __init__(self, study: Study, sources: Sources, tokenizer: TextTokenizer) -> None:
        self._study, model, injection = study, build_multimodal(study), study.injection
        kinds = [DATASETS[name] for name in study.dataset_names]
        data = {it.name: Decoded(it.name, it.card, it.index(sources.roots[it.name]), {}, {}) for it in kinds}
        self._counts = _counts(study, data)
        self.dims = token_dims(model, head_tokens=injection.head_tokens)
        made = {task.name: _lengths(study, task, data[task.dataset], model, tokenizer) for task in study.tasks}
        self._lengths = {name: length for name, (length, _) in made.items()}
        self.longest = max(most for _, most in made.values())
        rows = max(self._lengths[name].rows for name in study.train)
        most, mixed = max(made[name][1] for name in study.train), len(study.train) > 1
        self.shape = Shape(injection.batch_size, most, rows, mixed)
        self._rounds, every = study.rounds.num_rounds, study.evaluation.watch_every
        looks = [number for number in range(1, self._rounds + 1) if every and number % every == 0]
        if injection.schedule == "last":
            self._rounds, looks = 1, [number for number in looks if number == self._rounds]
        self._looks = len(looks)

    def _drawn(self) -> dict[str, float]:
        """Return trained task → examples of an epoch."""
        public, balanced = self._counts["public"], self._study.injection.balance_tasks
        share = math.ceil(sum(public.values()) / len(public))
        return {name: share if balanced else number for name, number in public.items()}

    def steps(self) -> int:
        """Return the injection steps over all rounds."""
        injection = self._study.injection
        return self._rounds * injection.num_epochs * math.ceil(sum(self._drawn().values()) / injection.batch_size)

    def learning(self) -> Work:
        """Return the work of these steps, with the texts that are rehearsed."""
        injection, epochs = self._study.injection, self._rounds * self._study.injection.num_epochs
        prompts = [self._lengths[name].learned(epochs * number) for name, number in self._drawn().items()]
        words = injection.rehearsal.num_questions * injection.keeps_words
        asking = Work(learned=words * (self.shape.length + _ANSWER), learned_rows=words * _ANSWER)
        step = rehearsal_work(injection).plus(asking).plus(Work(updates=1))
        return _sum([*prompts, step.times(self.steps())])

    def closed(self, *, controls: bool) -> dict[str, int]:
        """Return task → closed questions that are scored; ``controls`` put them in other words as well."""
        opened, wanted = self.open(controls=controls), controls and "answers" in self._study.evaluation.controls
        counts: dict[str, int] = {}
        for task in self._study.tasks:
            tested = self._counts["test"][task.name]
            few = min(tested, self._study.evaluation.num_rephrased) if wanted and isinstance(task, ClosedTask) else 0
            watched = self._looks * self._counts["development"].get(task.name, 0)
            counts[task.name] = opened.get(task.name, tested) + few * (1 + len(task.reworded)) + watched
        return counts

    def open(self, *, controls: bool) -> dict[str, int]:
        """Return task → questions in words; ``controls`` ask once with another patient's data, and once with none."""
        times = 3 if controls and "blind" in self._study.evaluation.controls else 1
        tasks = [task.name for task in self._study.tasks if isinstance(task, QuestionAnswering)]
        return {name: times * self._counts["test"][name] for name in tasks}

    def pools(self) -> dict[str, int]:
        """Return untrained closed task → public examples that its answers are calibrated on."""
        study, public = self._study, self._counts["public"]
        if not study.injection.answer_calibration:
            return {}
        untrained = [task for task in study.tasks if task.name not in study.train and isinstance(task, ClosedTask)]
        peers = {
            task: [peer.name for peer in study.train_tasks if peer.modalities == task.modalities] for task in untrained
        }
        return {task.name: sum(public[name] for name in names) for task, names in peers.items()}

    def scoring(self, counts: Mapping[str, int]) -> Work:
        """Return the work to score ``counts``; questions of their own share no beginning, for they are padded."""
        opened = self.open(controls=False)
        return _sum(self._lengths[name].scored(n, sharing=name not in opened) for name, n in counts.items())

    def answering(self, counts: Mapping[str, int]) -> Work:
        """Return the work to answer ``counts`` in words."""
        limit = self._study.evaluation.max_new_tokens
        return _sum(self._lengths[name].answered(number, limit) for name, number in counts.items())


def _sum(parts: Iterable[Work]) -> Work:
    return reduce(Work.plus, parts, Work())


def text_shape(injection: InjectionSettings) -> Shape | None:
    """Return the shape of the texts that a step rehearses; None where it rehearses nothing."""
    rehearsal = injection.rehearsal
    return Shape(rehearsal.num_texts, rehearsal.max_length, rehearsal.max_length) if injection.rehearses else None


def rehearsal_work(injection: InjectionSettings) -> Work:
    """Return the work of the texts of a step; with a KL the frozen LLM reads them too."""
    if (shape := text_shape(injection)) is None:
        return Work()
    count = shape.batch * shape.length
    return (
        Work(learned=count, learned_rows=count, read=count, rows=count)
        if injection.kl_weight
        else Work(learned=count, learned_rows=count)
    )


def looks_of(study: Study) -> int:
    """Return how often the LLM is examined: before the first and after the last injection, and in between."""
    rounds, every = study.rounds.num_rounds, study.evaluation.retention.every
    between = every and study.injection.schedule == "every"
    return 2 + sum(number % every == 0 for number in range(1, rounds)) if between else 2


def examination_work(examined: Sequence[Chosen], tokenizer: TextTokenizer, order: Order) -> Work:
    """Return the work to put all questions once, in every form; what they share at the beginning is read once."""
    work = Work()
    for form in forms_of(tokenizer, order).values():
        for examination, questions in examined:
            pairs = [(one.text, answer) for one in questions for answer in one.answers]
            parts = packs(continuations(pairs, replace(form, lead=examination.lead), tokenizer), TOKENS_AT_ONCE)
            for pack in parts:
                work = work.plus(Work(read=len(pack.tokens), rows=len({place for place, _ in pack.read})))
    return work


def _counts(study: Study, data: Mapping[str, Decoded]) -> dict[str, dict[str, int]]:
    """Return split → task → number of examples, as the cohort will have them."""
    parts = (SERVER_SPLITS,) if study.partition.scheme == "sites" else ()
    places = assign_splits(rosters(data, study.train_tasks), study.split, study.seed, *parts)
    rows = server_rows(data, Division.of(study), places)
    return {split: {name: len(members) for name, members in tasks.items()} for split, tasks in rows.items()}


@torch.no_grad()
def _lengths(
    study: Study, task: Task, data: Decoded, model: MultimodalModel, tokenizer: TextTokenizer
) -> tuple[Length, int]:
    """Return the mean length of a task's prompts with all its answers, and the positions of the longest one."""
    texts = sorted(task.questions(data), key=len) or [task.question]
    some = [texts[-1], *texts[:: math.ceil(len(texts) / _QUESTIONS)]]
    inquiries = [task.model_copy(update={"question": text}) for text in some]
    prompts = [build_prompt(one, tokenizer, study.injection.order) for one in inquiries]
    samples = {name: torch.zeros(1, *study.modality(name).sample_shape) for name in task.modalities}
    tokens = sum(model.eval().tokens(name, sample).shape[1] for name, sample in samples.items())
    if study.injection.head_tokens:
        tokens += sum(trained.modalities == task.modalities for trained in study.train_tasks)
    longest, *others = [tokens + len(one.before) + len(one.after) + len(one.appended) for one in prompts]
    return Length(mean(others), len(prompts[0].before), 1 + len(prompts[0].appended)), longest
