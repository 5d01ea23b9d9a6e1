"""The dry run's estimate for the LLM: its memory and time on this machine, before a run takes them.

No weight of the LLM is read and nothing is decoded. Parameters are counted on PyTorch's meta device, and the work in
:mod:`medfed.runs.forecast.work`. Time and activations come from a trial of a few layers
(:mod:`medfed.runs.forecast.trial`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from medfed.core.errors import StudyError
from medfed.injection.experts import add_experts
from medfed.injection.model import Projector
from medfed.llm.checkpoints import check_foundation
from medfed.llm.huggingface import HubTokenizer, locate
from medfed.llm.obtain.cached import named_folder
from medfed.runs.context import RunContext, examinations
from medfed.runs.forecast.trial import Shape, Trial, num_params, trial
from medfed.runs.forecast.work import Workload, text_shape, workload
from medfed.runs.predictors import BATCH_SIZE
from medfed.study.foundation import HuggingFaceSettings, TinySettings
from medfed.study.injection import InjectionSettings

_TRAINED_BYTES = 4 * 4
"""Per trained parameter, float32: the value, its gradient, and AdamW's two moments."""
_BLOCK = 64
"""Weights that share a scale in 4-bit NF4; the table of its 16 values is float32 too."""
_SPREAD = frozenset({"auto", "balanced", "balanced_low_0", "sequential"})
"""Device maps that divide the weights among all accelerators."""


def llm_lines(context: RunContext) -> Iterator[str]:
    """Yield what a run will take for its LLM, a folder or one in the cache; the last line has all of the time.

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
    tokenizer = HubTokenizer(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    work = workload(study, context.sources, tokenizer, examinations(study, context.paths))
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
        ran = trial(text, work.shape, settings, study.injection, devices[0], text_shape(study.injection))
    except torch.OutOfMemoryError:
        yield f"  memory: a trial of few layers with this batch is too much for {devices[0]}: it does NOT fit"
        return
    answering = Shape(BATCH_SIZE, work.longest + study.evaluation.max_new_tokens, 1)
    passing = {
        f"activations of {work.shape.batch} × {work.shape.length} positions, none recomputed": ran.kept_bytes,
        f"keys and values of {BATCH_SIZE} open answers": cache_bytes(text, answering, settings) * bool(work.num_open),
    }
    yield from need_lines(passing)
    yield verdict(sum([*needs.values(), *passing.values()]), free, devices)
    yield from time_lines(work, ran, devices[0])


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


def time_lines(work: Workload, ran: Trial, device: str) -> Iterator[str]:
    """Yield the time of every part of the work by the trial; clients' training is not counted."""
    parts = [(part.what, ran.seconds(part.work)) for part in work.parts]
    yield from (f"  time: {_duration(seconds)} {what}" for what, seconds in parts if seconds)
    total = _duration(sum(seconds for _, seconds in parts))
    where = "on a core of its own" if device == "cpu" else f"on {device}"
    yield f"  time: {total} in all for the LLM, give or take {ran.error:.0%}, {where}; clients not counted"


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
