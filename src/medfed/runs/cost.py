"""The dry run's estimate for the LLM: its memory and time on this machine, before a run takes them.

No weight of the LLM is read and nothing is decoded. Parameters are counted on PyTorch's meta device, examples on the
datasets' indexes. Time and activations come from a trial of a few layers (:mod:`medfed.runs.trial`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from medfed.core.catalog import DATASETS
from medfed.core.errors import StudyError
from medfed.data.layout import SERVER_SPLITS, Division, rosters, server_rows
from medfed.data.sources import Sources
from medfed.data.split import assign_splits
from medfed.datasets.decoded import Decoded
from medfed.injection.encode import token_dims
from medfed.injection.experts import add_experts
from medfed.injection.model import Projector
from medfed.llm.checkpoints import check_foundation
from medfed.llm.huggingface import HubTokenizer, locate
from medfed.llm.obtain.cached import named_folder
from medfed.llm.prompt import TextTokenizer, build_prompt
from medfed.models.multimodal import MultimodalModel
from medfed.runs.context import RunContext
from medfed.runs.federation import build_multimodal
from medfed.runs.predictors import BATCH_SIZE
from medfed.runs.trial import Shape, Trial, num_params, trial
from medfed.study.foundation import HuggingFaceSettings, TinySettings
from medfed.study.injection import InjectionSettings
from medfed.study.study import Study
from medfed.tasks.base import ClosedTask, Task
from medfed.tasks.question_answering import QuestionAnswering

_TRAINED_BYTES = 4 * 4
"""Per trained parameter, float32: the value, its gradient, and AdamW's two moments."""
_BLOCK = 64
"""Weights that share a scale in 4-bit NF4; the table of its 16 values is float32 too."""
_SPREAD = frozenset({"auto", "balanced", "balanced_low_0", "sequential"})
"""Device maps that divide the weights among all accelerators."""


def llm_lines(context: RunContext) -> Iterator[str]:
    """Yield what a run will take for its LLM, a folder or one in the cache.

    Raises StudyError if ``--foundation`` is no LLM, not the pinned one, or one of a kind that cannot be used.
    """
    study, path, cache = context.study, context.paths.foundation, context.paths.cache
    settings = study.foundation
    if isinstance(settings, TinySettings):
        steps = f"{settings.num_steps} steps of pre-training unless the cache has it, and little memory"
        yield f"LLM: tiny, {settings.num_layers} layers of width {settings.width}; {steps}"
        return
    try:
        folder = locate(settings, named_folder(path, settings.model, cache))
    except StudyError as error:
        if path is not None:
            raise
        yield f"LLM: not here ({error.what}): {error.hint}"
        return
    if settings.sha256 is not None:
        check_foundation(folder, settings.sha256)
    yield from _estimate(context, settings, folder)


def _estimate(context: RunContext, settings: HuggingFaceSettings, folder: Path) -> Iterator[str]:
    """Yield memory first, then time, for which a trial must fit."""
    study = context.study
    model, devices = without_weights(folder), devices_of(settings, study.injection.device)
    text, pinned = model.config.get_text_config(), settings.sha256 is not None  # type: ignore[union-attr, operator]
    size = f"{text.num_hidden_layers} layers of width {text.hidden_size}, {num_params(model):,} parameters"
    yield f"LLM: {type(model).__name__} in {folder}: {size}"
    yield f"  {'its checksum is the pinned one' if pinned else 'not pinned: `medfed foundation` prints its checksum'}"
    yield from dtype_lines(settings, context.trial)
    work = workload(study, context.sources, HubTokenizer(AutoTokenizer.from_pretrained(folder, local_files_only=True)))
    frozen = weight_bytes(model, settings)
    trained = trained_params(model, work.dims, study.injection)
    yield f"  trained in injection: {', '.join(f'{number:,} in {name}' for name, number in trained.items() if number)}"
    needs = {
        f"weights, {'4-bit' if settings.load_in_4bit else settings.dtype}": frozen,
        "trained, with gradients and AdamW's moments": sum(trained.values()) * _TRAINED_BYTES,
    }
    yield from need_lines(needs)
    free = sum(map(free_bytes, devices))
    if sum(needs.values()) >= free:
        yield verdict(sum(needs.values()), free, devices)
        yield "  time: not tried, for want of memory"
        return
    try:
        ran = trial(text, work.shape, settings, study.injection, devices[0], mixed=len(study.train) > 1)
    except torch.OutOfMemoryError:
        yield f"  memory: a trial of few layers with this batch is too much for {devices[0]}: it does NOT fit"
        return
    answering = replace(work.shape, batch=BATCH_SIZE, length=work.shape.length + study.evaluation.max_new_tokens)
    passing = {
        f"activations of {work.shape.batch} × {work.shape.length} positions, none recomputed": ran.kept_bytes,
        f"keys and values of {BATCH_SIZE} open answers": cache_bytes(text, answering, settings) * bool(work.num_open),
    }
    yield from need_lines(passing)
    yield verdict(sum([*needs.values(), *passing.values()]), free, devices)
    yield from time_lines(work, ran, study.evaluation.max_new_tokens, devices[0])


def dtype_lines(settings: HuggingFaceSettings, facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the dtype of the weights, and what the trial took that chose it."""
    seconds = facts["dtype_trial"]["seconds"] if facts else {}
    listed = ", ".join(f"{value:.3f} s in {name}" for name, value in seconds.items())
    yield f"  dtype: {settings.dtype}" + (f", by a trial of its widths: {listed}" if listed else ", as the study says")


def need_lines(needs: Mapping[str, int]) -> Iterator[str]:
    """Yield the bytes needed; not all are needed at the same time."""
    return (f"  memory: {_size(size)} {name}" for name, size in needs.items() if size)


def verdict(total: int, free: int, devices: Sequence[str]) -> str:
    """Return whether ``free`` bytes on ``devices`` are enough for ``total``."""
    fits = "it fits" if total < free else "it does NOT fit: try --load-in-4bit or a smaller batch"
    return f"  memory: {_size(total)} together; {_size(free)} are free on {', '.join(devices)}: {fits}"


def time_lines(work: Workload, ran: Trial, max_new_tokens: int, device: str) -> Iterator[str]:
    """Yield the time of injection and evaluation by the trial; clients' training is not counted."""
    forward = ran.forward_seconds / work.shape.batch
    answer = forward + max_new_tokens * ran.token_seconds / work.shape.batch
    step = work.share * ran.step_seconds
    parts = [
        (work.num_steps * step, f"for {work.num_steps:,} injection steps on {device}, {_duration(step)} each"),
        (work.num_closed * forward, f"to score {work.num_closed:,} closed questions"),
        (work.num_calibrating * forward, f"to calibrate on {work.num_calibrating:,} public examples"),
        (work.num_open * answer, f"to answer {work.num_open:,} open questions, if all go on to the limit"),
    ]
    yield from (f"  time: {_duration(seconds)} {what}" for seconds, what in parts if seconds)
    total = _duration(sum(seconds for seconds, _ in parts))
    yield f"  time: {total} in all for the LLM, give or take {ran.error:.0%}, on a core of its own; clients not counted"


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 / 100 else f"{count / 2**20:,.2f} MiB"


def _duration(seconds: float) -> str:
    size, unit = (3600, "h") if seconds >= 3600 else (60, "min") if seconds >= 60 else (1, "s")
    return f"{seconds / size:,.1f} {unit}"


def devices_of(settings: HuggingFaceSettings, given: str) -> list[str]:
    """Return the devices that hold the weights; ``given`` is that of a foundation that is not placed.

    Raises StudyError if the name is no device's, or the device is not here.
    """
    name = settings.device_map if settings.placed else given
    if name is None or name in _SPREAD:
        number = torch.cuda.device_count() if name in _SPREAD else int(torch.cuda.is_available())
        return [f"cuda:{place}" for place in range(number)] or ["cpu"]
    try:
        missing = torch.device(name).type == "cuda" and not torch.cuda.is_available()
    except RuntimeError:
        missing = True
    if missing:
        where = "foundation.device_map" if settings.placed else "injection.device"
        hint = "give cpu, cuda:0 or a device map: auto"
        raise StudyError(f"there is no device {name!r} here", where=where, hint=hint)
    return [name]


def free_bytes(device: str) -> int:
    """Return the memory that is free on ``device``."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def without_weights(folder: Path) -> nn.Module:
    """Return the LLM in ``folder`` on the meta device. Raises StudyError if transformers does not know its kind."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise StudyError(f"cannot read the LLM: {reason}", where=folder, hint="use a native causal LM") from error
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def weight_bytes(model: nn.Module, settings: HuggingFaceSettings) -> int:
    """Return the memory of the frozen weights, with the scales and tables of 4-bit ones."""
    size = int(getattr(torch, settings.dtype).itemsize)
    if not settings.load_in_4bit:
        return num_params(model) * size
    head = model.get_output_embeddings()  # type: ignore[operator]
    packed = [part for part in model.modules() if isinstance(part, nn.Linear) and part is not head]
    weights = [part.weight.numel() for part in packed]
    biases = sum(part.bias.numel() for part in packed if part.bias is not None)
    rest = num_params(model) - sum(weights) - biases
    return rest * size + biases * 2 + sum((n + 1) // 2 + 4 * -(-n // _BLOCK) + 4 * 16 for n in weights)


def trained_params(model: nn.Module, dims: Mapping[str, int], settings: InjectionSettings) -> dict[str, int]:
    """Return part → number of trained parameters of the injected LLM; ``model`` gets experts, in place."""
    width = int(model.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
    counts = {"projectors": 0, "router": 0, "experts": 0}
    with torch.device("meta"):
        for dim in dims.values():
            counts["projectors"] += num_params(Projector(settings.projector, dim, width, 1.0))
        adapted = add_experts(model, settings) if settings.num_experts else nn.Module()
    for name, value in adapted.named_parameters():
        if value.requires_grad:
            counts["router" if ".router." in name else "experts"] += value.numel()
    return counts


def cache_bytes(config: PreTrainedConfig, shape: Shape, settings: HuggingFaceSettings) -> int:
    """Return the memory of a batch's keys and values while an open question is answered."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = int(getattr(torch, settings.dtype).itemsize)
    return 2 * int(config.num_hidden_layers * heads * head_dim) * shape.batch * shape.length * size


@dataclass(frozen=True)
class Workload:
    """The work of the LLM: injection steps over all rounds, questions scored, answered and calibrated on.

    A shape is that of a batch of the longest prompts; dims are the widths of the tokens.
    """

    num_steps: int
    num_closed: int
    """Closed questions that are scored, those of the development set in every round and of the controls included."""
    num_open: int
    num_calibrating: int
    """Public examples that answers to untrained closed questions are calibrated on, once per task."""
    shape: Shape
    dims: Mapping[str, int]
    share: float = 1.0
    """Mean length of the trained tasks' prompts, of the longest one's."""


def workload(study: Study, sources: Sources, tokenizer: TextTokenizer) -> Workload:
    """Count the work of ``study`` on its datasets' indexes; unreadable and missing examples count too."""
    model, injection = build_multimodal(study), study.injection
    rounds, every = study.rounds.num_rounds, study.evaluation.watch_every
    looks = [number for number in range(1, rounds + 1) if every and number % every == 0]
    if injection.schedule == "last":
        rounds, looks = 1, [number for number in looks if number == rounds]
    kinds = [DATASETS[name] for name in study.dataset_names]
    data = {it.name: Decoded(it.name, it.card, it.index(sources.roots[it.name]), {}, {}) for it in kinds}
    counts = _counts(study, data)
    public = sum(counts["public"].values())
    drawn = math.ceil(public / len(study.train)) * len(study.train) if injection.balance_tasks else public
    watched = len(looks) * sum(counts["development"].values())
    opened = [task.name for task in study.tasks if isinstance(task, QuestionAnswering)]
    untrained = [task for task in study.tasks if task.name not in study.train and isinstance(task, ClosedTask)]
    pools = [peer.name for task in untrained for peer in study.train_tasks if peer.modalities == task.modalities]
    lengths, positions = zip(*(_length(study, task, data, model, tokenizer) for task in study.tasks), strict=True)
    rephrased, reopened = control_work(study, counts["test"])
    return Workload(
        num_steps=rounds * injection.num_epochs * math.ceil(drawn / injection.batch_size),
        num_closed=sum(counts["test"].values()) + watched + rephrased + reopened,
        num_open=sum(counts["test"][name] for name in opened) + reopened,
        num_calibrating=sum(counts["public"][name] for name in pools) if injection.answer_calibration else 0,
        shape=Shape(injection.batch_size, max(lengths), max(positions)),
        dims=token_dims(model, head_tokens=injection.head_tokens),
        share=mean(lengths[: len(study.train)]) / max(lengths),
    )


def control_work(study: Study, tested: Mapping[str, int]) -> tuple[int, int]:
    """Return how many closed and open questions the controls add; ``tested`` are test examples by task.

    An open question has no patient's data once, and another patient's once; a closed one is put in other words.
    """
    controls, evaluation = study.evaluation.controls, study.evaluation
    worded = [task.name for task in study.tasks if isinstance(task, QuestionAnswering)]
    closed = [task for task in study.tasks if isinstance(task, ClosedTask)]
    sizes = [min(tested[task.name], evaluation.num_rephrased) * (1 + len(task.reworded)) for task in closed]
    rephrased = sum(sizes) if "answers" in controls else 0
    return rephrased, 2 * sum(tested[name] for name in worded) if "blind" in controls else 0


def _counts(study: Study, data: Mapping[str, Decoded]) -> dict[str, dict[str, int]]:
    """Return split → task → number of examples, as the cohort will have them."""
    parts = (SERVER_SPLITS,) if study.partition.scheme == "sites" else ()
    places = assign_splits(rosters(data, study.train_tasks), study.split, study.seed, *parts)
    rows = server_rows(data, Division.of(study), places)
    return {split: {name: len(members) for name, members in tasks.items()} for split, tasks in rows.items()}


@torch.no_grad()
def _length(
    study: Study, task: Task, data: Mapping[str, Decoded], model: MultimodalModel, tokenizer: TextTokenizer
) -> tuple[int, int]:
    """Return the positions of a task's longest prompt with all its answers, and how many are answer positions."""
    if questions := task.questions(data[task.dataset]):
        task = task.model_copy(update={"question": max(questions, key=len)})
    prompt = build_prompt(task, tokenizer, study.injection.order)
    samples = {name: torch.zeros(1, *study.modality(name).sample_shape) for name in task.modalities}
    tokens = sum(model.eval().tokens(name, sample).shape[1] for name, sample in samples.items())
    if study.injection.head_tokens:
        tokens += sum(trained.modalities == task.modalities for trained in study.train_tasks)
    return len(prompt.before) + tokens + len(prompt.after) + len(prompt.appended), 1 + len(prompt.appended)
