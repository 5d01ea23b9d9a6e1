"""What a study will ask of its LLM: how many steps, how many questions, how long a prompt. Nothing is decoded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from medfed.arm import build_multimodal
from medfed.datasets import DATASETS
from medfed.datasets.decode import Decoded
from medfed.datasets.split import assign_splits
from medfed.injection.encoding import shown_dims
from medfed.injection.forecast import Shape
from medfed.injection.prompt import TextTokenizer, build_prompt
from medfed.models.multimodal import MultimodalModel
from medfed.prepare import Sources
from medfed.study import Study
from medfed.tasks.base import ClosedTask, Task
from medfed.tasks.cohort import SERVER_SPLITS
from medfed.tasks.question_answering import QuestionAnswering
from medfed.tasks.rows import laid_out, rosters, rows_by_place


@dataclass(frozen=True)
class Workload:
    """What the LLM is asked to do.

    Attributes:
        num_steps: injection steps, over all rounds.
        num_closed: closed questions that are scored, those of the development set in every round included.
        num_open: open questions that are answered.
        num_calibrating: public examples that answers to untrained closed questions are calibrated on, once per task.
        shape: a batch of the longest prompts.
        dims: token width of everything that is shown.
    """

    num_steps: int
    num_closed: int
    num_open: int
    num_calibrating: int
    shape: Shape
    dims: Mapping[str, int]


def workload(study: Study, sources: Sources, tokenizer: TextTokenizer) -> Workload:
    """Count the work of ``study`` on its datasets' indexes; what will turn out unreadable or missing counts too."""
    model, rounds = build_multimodal(study), study.rounds.num_rounds
    data = {name: _undecoded(name, sources) for name in study.dataset_names}
    counts = _counts(study, data)
    public = sum(counts["public"].values())
    drawn = math.ceil(public / len(study.train)) * len(study.train) if study.injection.balance_tasks else public
    looks = rounds // study.evaluation.watch_every if study.evaluation.watch_every else 0
    answered = {task.name for task in study.tasks if isinstance(task, QuestionAnswering)}
    tested = counts["test"]
    lengths = [_length(study, _wordiest(task, data[task.dataset]), model, tokenizer) for task in study.tasks]
    length, asked = max(length for length, _ in lengths), max(asked for _, asked in lengths)
    return Workload(
        num_steps=rounds * study.injection.num_epochs * math.ceil(drawn / study.injection.batch_size),
        num_closed=sum(tested.values()) + looks * sum(counts["development"].values()),
        num_open=sum(number for name, number in tested.items() if name in answered),
        num_calibrating=_num_calibrating(study, counts["public"]),
        shape=Shape(study.injection.batch_size, length, asked),
        dims=shown_dims(model, head_tokens=study.injection.head_tokens),
    )


def _counts(study: Study, data: Mapping[str, Decoded]) -> dict[str, dict[str, int]]:
    """Return split → task → number of examples, as the cohort will have them."""
    parts = (SERVER_SPLITS,) if study.partition.scheme == "sites" else ()
    places = assign_splits(rosters(data, study.train_tasks), study.split, study.seed, *parts)
    rows = laid_out(data, study.train_tasks, places, SERVER_SPLITS)
    counts = {split: {name: len(found) for name, found in own.items()} for split, own in rows.items()}
    elsewhere = {patient: place for patient, place in places.items() if place != "test"}
    for task in study.tasks:
        if task.name in study.unseen:
            counts["test"][task.name] = len(rows_by_place(data[task.dataset], task, elsewhere).get(None, ()))
    return counts


def _num_calibrating(study: Study, public: Mapping[str, int]) -> int:
    """Return how many public examples untrained closed tasks are shown, as calibration chooses them."""
    if not study.injection.answer_calibration:
        return 0
    shown = [task for task in study.tasks if task.name in study.unseen and isinstance(task, ClosedTask)]
    return sum(public[own.name] for task in shown for own in study.train_tasks if own.modalities == task.modalities)


def _undecoded(name: str, sources: Sources) -> Decoded:
    return Decoded(name, DATASETS[name].card, DATASETS[name].index(sources.roots[name]), {}, {})


def _wordiest(task: Task, data: Decoded) -> Task:
    """Return a task with the longest question that one of its examples asks; itself if it asks one of all."""
    asked = task.questions(data)
    return task.model_copy(update={"question": max(asked, key=len)}) if asked else task


@torch.no_grad()
def _length(study: Study, task: Task, model: MultimodalModel, tokenizer: TextTokenizer) -> tuple[int, int]:
    """Return the positions of a task's prompt with all its answers, and how many of them give logits."""
    prompt = build_prompt(task, tokenizer, study.injection.order)
    tokens = 0
    for name in task.modalities:
        sample = torch.zeros(1, *study.modality(name).sample_shape)
        tokens += model.eval().tokens(name, sample).shape[1]
    if study.injection.head_tokens:
        tokens += sum(trained.modalities == task.modalities for trained in study.train_tasks)
    return len(prompt.before) + tokens + len(prompt.after) + len(prompt.appended), 1 + len(prompt.appended)
