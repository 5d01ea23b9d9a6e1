"""What a dry run says of the LLM: how much memory and time it will take, on this machine, before it takes them.

What a study will ask of its LLM: how many steps, how many questions, how long a prompt. Nothing is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedConfig

from medfed.core.catalog import DATASETS
from medfed.core.errors import StudyError
from medfed.data.layout import SERVER_SPLITS, Division, rosters, server_rows
from medfed.data.sources import Sources
from medfed.data.split import assign_splits
from medfed.datasets.decoded import Decoded
from medfed.injection.encode import shown_dims
from medfed.llm.checkpoints import check_foundation
from medfed.llm.huggingface import SPREAD, HubTokenizer, locate
from medfed.llm.prompt import TextTokenizer, build_prompt
from medfed.models.multimodal import MultimodalModel
from medfed.runs.federation import build_multimodal
from medfed.runs.forecast import (
    TRAINED_BYTES,
    Shape,
    Trial,
    cache_bytes,
    free_bytes,
    num_params,
    on_meta,
    read_config,
    trained_params,
    trial,
    weight_bytes,
)
from medfed.runs.predictors import BATCH_SIZE
from medfed.study.foundation import HuggingFaceSettings, TinySettings
from medfed.study.study import Study
from medfed.tasks.base import ClosedTask, Task
from medfed.tasks.question_answering import QuestionAnswering

GIB = 2**30


def llm_lines(study: Study, sources: Sources, path: Path | None) -> Iterator[str]:
    """Yield what a run of ``study`` will take for its LLM.

    Raises:
        StudyError: ``path`` holds no LLM, or one that is not the pinned one or of no kind that can be used.
    """
    settings = study.foundation
    if isinstance(settings, TinySettings):
        yield (
            f"LLM: tiny, {settings.num_layers} layers of width {settings.width}; {settings.num_steps} steps of "
            "pre-training unless the cache has it, and little memory"
        )
        return
    try:
        folder = locate(settings, path)
    except StudyError as error:
        if path is not None:
            raise
        yield f"LLM: not here ({error.what}): {error.hint}"
        return
    if settings.sha256 is not None:
        check_foundation(folder, settings.sha256)
    yield from _here(study, sources, settings, folder)


def _here(study: Study, sources: Sources, settings: HuggingFaceSettings, folder: Path) -> Iterator[str]:
    """Yield what the LLM in ``folder`` is and takes: memory first, time only if a trial can be afforded."""
    config, devices = read_config(folder), devices_of(settings, study.injection.device)
    model = on_meta(config)
    text = config.get_text_config()
    yield (
        f"LLM: {type(model).__name__} in {folder}: {text.num_hidden_layers} layers of width {text.hidden_size}, "
        f"{num_params(model):,} parameters"
    )
    yield (
        "  its checksum is the pinned one"
        if settings.sha256
        else "  not pinned: `medfed foundation` prints its checksum"
    )
    work = workload(study, sources, HubTokenizer(AutoTokenizer.from_pretrained(folder, local_files_only=True)))
    trained = trained_params(model, work.dims, study.injection)
    yield f"  trained in injection: {', '.join(f'{number:,} in {name}' for name, number in trained.items() if number)}"
    needs = {
        f"weights, {'4-bit' if settings.load_in_4bit else settings.dtype}": weight_bytes(model, settings),
        "trained, with gradients and AdamW's moments": sum(trained.values()) * TRAINED_BYTES,
    }
    yield from need_lines(needs)
    yield from _tried(study, config, work, settings, sum(needs.values()), devices)


def _tried(
    study: Study,
    config: PreTrainedConfig,
    work: Workload,
    settings: HuggingFaceSettings,
    held: int,
    devices: Sequence[str],
) -> Iterator[str]:
    """Yield what a trial shows, and whether all fits beside the ``held`` bytes."""
    free = sum(free_bytes(device) for device in devices)
    if held >= free:
        yield verdict(held, free, devices)
        yield "  time: not tried, for want of memory"
        return
    try:
        ran = trial(config, work.shape, settings, study.injection, devices[0], mixed=len(study.train) > 1)
    except torch.OutOfMemoryError:
        yield f"  memory: a trial of few layers with this batch is too much for {devices[0]}: it does NOT fit"
        return
    passing = {
        f"activations of {work.shape.batch} × {work.shape.length} positions, none recomputed": ran.kept_bytes,
        f"keys and values of {BATCH_SIZE} open answers": _open_bytes(config, work, study, settings),
    }
    yield from need_lines(passing)
    yield verdict(sum([held, *passing.values()]), free, devices)
    yield from time_lines(work, ran, study.evaluation.max_new_tokens, devices[0])


def devices_of(settings: HuggingFaceSettings, given: str) -> list[str]:
    """Return the devices that hold the weights; ``given`` is where a foundation goes that is not placed.

    Raises:
        StudyError: the device is none, or is not here.
    """
    name = settings.device_map if settings.placed else given
    if name is None or name in SPREAD:
        number = torch.cuda.device_count() if name in SPREAD else int(torch.cuda.is_available())
        return [f"cuda:{place}" for place in range(number)] or ["cpu"]
    try:
        missing = torch.device(name).type == "cuda" and not torch.cuda.is_available()
    except RuntimeError:
        missing = True
    if missing:
        where = "foundation.device_map" if settings.placed else "injection.device"
        raise StudyError(
            f"there is no device {name!r} here", where=where, hint="give cpu, cuda:0 or a device map: auto"
        )
    return [name]


def need_lines(needs: dict[str, int]) -> Iterator[str]:
    """Yield what is needed; not all is needed at the same time."""
    for name, size in needs.items():
        if size:
            yield f"  memory: {_size(size)} {name}"


def verdict(total: int, free: int, devices: Sequence[str]) -> str:
    """Return whether ``free`` bytes on ``devices`` are enough for ``total``."""
    fits = "it fits" if total < free else "it does NOT fit: try --load-in-4bit or a smaller batch"
    return f"  memory: {_size(total)} together; {_size(free)} are free on {', '.join(devices)}: {fits}"


def time_lines(work: Workload, ran: Trial, max_new_tokens: int, device: str) -> Iterator[str]:
    """Yield how long injection and evaluation take, as the trial ran; clients' training is not counted."""
    scored = work.num_closed / work.shape.batch * ran.forward_seconds
    answered = work.num_open / work.shape.batch * (ran.forward_seconds + max_new_tokens * ran.token_seconds)
    yield f"  time: {_duration(work.num_steps * ran.step_seconds)} for {work.num_steps:,} injection steps on {device}"
    yield f"  time: {_duration(scored)} to score {work.num_closed:,} closed questions"
    if work.num_calibrating:
        calibrated = work.num_calibrating / work.shape.batch * ran.forward_seconds
        yield f"  time: {_duration(calibrated)} to calibrate on {work.num_calibrating:,} public examples"
    if work.num_open:
        yield f"  time: up to {_duration(answered)} to answer {work.num_open:,} open questions"


def _open_bytes(config: PreTrainedConfig, work: Workload, study: Study, settings: HuggingFaceSettings) -> int:
    """Return what keys and values take while open questions are answered, if there are any."""
    shape = replace(work.shape, batch=BATCH_SIZE, length=work.shape.length + study.evaluation.max_new_tokens)
    return cache_bytes(config, shape, settings) if work.num_open else 0


def _size(count: int) -> str:
    return f"{count / GIB:,.2f} GiB" if count >= GIB / 100 else f"{count / 2**20:,.2f} MiB"


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"


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
    rows = server_rows(data, Division.of(study), places)
    return {split: {name: len(kept) for name, kept in by_task.items()} for split, by_task in rows.items()}


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
