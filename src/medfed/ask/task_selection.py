"""Which task a question is, and how it is answered: by comparing a few answers, or in words.

The rule, in this order:

1. The task is the one that is named. Without a name, it is one of the run's tasks that read all given files. Tasks that
   need no other file come first. A task is chosen by its own question; else, for a user's question, an open task of
   those modalities. Else it is the one whose question has most words in common with it. The router reads the chosen
   task's descriptions.
2. A question is closed if answers are given with it, or if it is a closed task's own. It also is if it reads like a
   yes/no question (:func:`is_closed`). The likelihoods of the answers are compared. Any other is answered in words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from medfed.ask.inputs import Kind, modalities_of, require_kind
from medfed.core.catalog import TASKS
from medfed.core.errors import StudyError
from medfed.evaluation.text_metrics import token_f1, words
from medfed.study.study import Study
from medfed.tasks.base import Task
from medfed.tasks.question_answering import QuestionAnswering

QUESTION_MODALITY = "question"
"""A modality that is the question itself: closed visual question answering reads it together with the image."""


AUXILIARIES = frozenset((
    "am", "is", "are", "was", "were", "isn't", "aren't", "do", "does", "did", "don't", "doesn't", "has", "have", "had",
    "hasn't", "can", "could", "will", "would", "shall", "should", "may", "might", "must",
))  # fmt: skip


class Plan(NamedTuple):
    """How a question is put: of a ``closed`` one the task's answers are compared, of others the answer is decoded.

    A user's question stands in ``question`` and not in the task. So questions of one task make one batch, and another
    question's calibration is not applied to it. ``name`` is the registry's name of the task.
    """

    task: Task
    name: str
    question: str
    closed: bool


def plan(
    study: Study,
    kinds: Collection[Kind],
    task: str | None = None,
    question: str | None = None,
    answers: Sequence[str] = (),
) -> Plan:
    """Choose the task and the kind of answer for files of ``kinds``, by the rule above.

    ``task`` is a name, whether the run trained it or not. ``question`` is one's own; None asks the task's.
    Raises StudyError if nothing is given, no task suits, or several do and nothing says which.
    """
    if not kinds:
        raise StudyError("nothing to look at", hint="give a file: --image, --ecg or --icu")
    for kind in kinds:
        require_kind(study, kind)
    question = (question or "").strip()
    chosen = _named(study, kinds, task) if task else _suited(study, kinds, question)
    if not question and not chosen.question:
        where = f"task {chosen.name!r}"
        raise StudyError("an open task has no question of its own", where=where, hint="ask one with --question")
    is_the_tasks = not question or (bool(chosen.question) and words(question) == words(chosen.question))
    put = chosen if is_the_tasks else chosen.model_copy(update={"question": ""})
    closed = bool(answers) or is_the_tasks or is_closed(question)
    return Plan(_with_answers(put, answers), chosen.name, chosen.question if is_the_tasks else question, closed)


def is_closed(question: str) -> bool:
    """Whether ``question`` reads like a yes/no question.

    The first word, or the first after a comma or colon, is a form of be, do, have or a modal verb. The question offers
    no choice ("… or …"). In Chinese: it ends in 吗 or contains 是否.
    """
    if re.search(r"吗\s*[?？]?\s*$|是否|是不是", question):
        return True
    starts = [part.split() for part in re.split(r"[,:;]", question.lower().replace("’", "'"))]
    return any(part and part[0] in AUXILIARIES for part in starts) and not re.search(r"\bor\b", question.lower())


def askable(study: Study, kinds: Collection[Kind], tasks: Iterable[Task] | None = None) -> list[Task]:
    """Return those of ``tasks`` that read all ``kinds``: the ones that need no other file, if there are any.

    By default they are the run's, trained ones first.
    """
    tasks = study.tasks if tasks is None else tasks
    reading = [task for task in tasks if kinds and _encoded(study, task) and not _unread(study, task, kinds)]
    filled = {QUESTION_MODALITY, *(name for kind in kinds for name in modalities_of(study, kind))}
    return [task for task in reading if filled.issuperset(task.modalities)] or reading


def _unread(study: Study, task: Task, kinds: Collection[Kind]) -> list[Kind]:
    return [kind for kind in kinds if not set(modalities_of(study, kind)) & set(task.modalities)]


def _encoded(study: Study, task: Task) -> bool:
    return set(task.modalities) <= set(study.encoders) and len(task.answers) > 1


def _named(study: Study, kinds: Collection[Kind], name: str) -> Task:
    task, where = TASKS.lookup(name), f"task {name!r}"
    reads = f"the task reads {', '.join(task.modalities)}"
    if not _encoded(study, task):
        what = f"this run cannot answer it: {reads}, and the run has encoders for {', '.join(study.encoders)}"
        hint = f"the run's tasks: {', '.join(task.name for task in study.tasks)}"
        raise StudyError(what, where=where, hint=hint)
    if useless := _unread(study, task, kinds):
        hint = "leave that file out, or choose another task"
        raise StudyError(f"{reads}, nothing of --{useless[0]}", where=where, hint=hint)
    return task


def _suited(study: Study, kinds: Collection[Kind], question: str) -> Task:
    tasks = askable(study, kinds)
    if not tasks:
        what = f"none of the run's tasks reads {' and '.join(f'--{kind}' for kind in kinds)} together"
        raise StudyError(what, where=f"study {study.name!r}", hint="give fewer files")
    if not question:
        return _only(tasks)
    if same := [task for task in tasks if task.question and words(task.question) == words(question)]:
        return same[0]
    others = askable(study, kinds, TASKS.values())
    opened = [task for task in (*tasks, *others) if isinstance(task, QuestionAnswering)]
    return opened[0] if opened else max(tasks, key=lambda task: token_f1(words(task.question), words(question)))


def _only(tasks: Sequence[Task]) -> Task:
    closed = [task for task in tasks if task.question]
    if len(closed) < 2:
        return (closed or tasks)[0]
    known = "; ".join(f"{task.name}: {task.question}" for task in closed)
    raise StudyError("several tasks read this", hint=f"name one with --task, or ask with --question. {known}")


def _with_answers(task: Task, answers: Sequence[str]) -> Task:
    """Let ``answers`` be compared; the task's own stay so whatever their case, calibration included."""
    if not answers or {text.casefold() for text in answers} == {text.casefold() for text in task.answers}:
        return task
    return task.model_copy(update={"answers": tuple(answers), "name": f"{task.name}, other answers"})


def parse_answers(text: str | None) -> tuple[str, ...]:
    """Read candidate answers, separated by commas; raise StudyError if there is only one, or one stands twice."""
    answers = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    if len(answers) == 1 or len({answer.casefold() for answer in answers}) < len(answers):
        raise StudyError("answers to compare must be two or more, all different", hint='for example --answers "yes,no"')
    return answers
