"""What a dry run says of the LLM: how much memory and time it will take, on this machine, before it takes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer

from medfed.evaluation.predict import BATCH_SIZE
from medfed.injection.checksum import check_foundation
from medfed.injection.forecast import (
    TRAINED_BYTES,
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
from medfed.injection.foundation import TinySettings
from medfed.injection.huggingface import HubTokenizer, HuggingFaceSettings, locate
from medfed.prepare import Sources
from medfed.study import Study
from medfed.workload import Workload, workload

GIB = 2**30


def llm_lines(study: Study, sources: Sources, path: Path | None) -> Iterator[str]:
    """Yield what a run of ``study`` will take for its LLM.

    Raises:
        StudyError: the LLM is not there, is not the pinned one, or is of no kind that can be used.
    """
    settings = study.foundation
    if isinstance(settings, TinySettings):
        yield (
            f"LLM: tiny, {settings.num_layers} layers of width {settings.width}; {settings.num_steps} steps of "
            "pre-training unless the cache has it, and little memory"
        )
        return
    folder = locate(settings, path)
    if settings.sha256 is not None:
        check_foundation(folder, settings.sha256)
    config, device = read_config(folder), _device(settings, study.injection.device)
    model = on_meta(config)
    text = config.get_text_config()
    work = workload(study, sources, HubTokenizer(AutoTokenizer.from_pretrained(folder, local_files_only=True)))
    yield (
        f"LLM: {type(model).__name__} in {folder}: {text.num_hidden_layers} layers of width {text.hidden_size}, "
        f"{num_params(model):,} parameters"
    )
    yield (
        "  its checksum is the pinned one"
        if settings.sha256
        else "  not pinned: `medfed foundation` prints its checksum"
    )
    ran = trial(config, work.shape, settings, study.injection, device)
    trained = trained_params(model, work.dims, study.injection)
    yield f"  trained in injection: {', '.join(f'{number:,} in {name}' for name, number in trained.items() if number)}"
    open_shape = replace(work.shape, batch=BATCH_SIZE, length=work.shape.length + study.evaluation.max_new_tokens)
    needs = {
        f"weights, {'4-bit' if settings.load_in_4bit else settings.dtype}": weight_bytes(model, settings),
        "trained, with gradients and AdamW's moments": sum(trained.values()) * TRAINED_BYTES,
        f"activations of {work.shape.batch} × {work.shape.length} positions, none recomputed": ran.kept_bytes,
        f"keys and values of {BATCH_SIZE} open answers": cache_bytes(config, open_shape, settings)
        if work.num_open
        else 0,
    }
    yield from memory_lines(needs, free_bytes(device), device)
    yield from time_lines(work, ran, study.evaluation.max_new_tokens, device)


def memory_lines(needs: dict[str, int], free: int, device: str) -> Iterator[str]:
    """Yield what is needed, the sum, and whether ``free`` bytes are enough; not all is needed at the same time."""
    for name, size in needs.items():
        if size:
            yield f"  memory: {_size(size)} {name}"
    total = sum(needs.values())
    verdict = "it fits" if total < free else "it does NOT fit: try --load-in-4bit or a smaller batch"
    yield f"  memory: {_size(total)} together; {_size(free)} are free on {device}: {verdict}"


def time_lines(work: Workload, ran: Trial, max_new_tokens: int, device: str) -> Iterator[str]:
    """Yield how long injection and evaluation take, as the trial ran; clients' training is not counted."""
    scored = work.num_closed / work.shape.batch * ran.forward_seconds
    answered = work.num_open / work.shape.batch * (ran.forward_seconds + max_new_tokens * ran.token_seconds)
    yield f"  time: {_duration(work.num_steps * ran.step_seconds)} for {work.num_steps:,} injection steps on {device}"
    yield f"  time: {_duration(scored)} to score {work.num_closed:,} closed questions"
    if work.num_open:
        yield f"  time: up to {_duration(answered)} to answer {work.num_open:,} open questions"


def _device(settings: HuggingFaceSettings, given: str) -> str:
    if not settings.placed or settings.device_map not in (None, "auto"):
        return settings.device_map or given
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _size(count: int) -> str:
    return f"{count / GIB:,.2f} GiB" if count >= GIB / 100 else f"{count / 2**20:,.2f} MiB"


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"
