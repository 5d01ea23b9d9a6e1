"""Write ``processor/`` of an export: how a sample becomes prompt embeddings, as JSON and safetensors.

``processor.json`` is a :class:`medfed.export.exported.ProcessorConfig`. With it come ``encoders`` and ``projectors``
and, where the prompt has head tokens, ``heads.safetensors``. ``prompt.safetensors`` holds the embedded texts around
them, so that a client builds prompts without the LLM.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from safetensors.torch import save_file
from torch import nn

from medfed.export.exported import CONFIG, FOLDER, Adapter, ModalityConfig, ProcessorConfig, PromptConfig
from medfed.injection.encode import HEAD
from medfed.injection.model import module_name
from medfed.models.base import Encoder
from medfed.runs.loaded import LoadedRun
from medfed.study.foundation import HuggingFaceSettings
from medfed.tasks.base import Task


def processor_of(
    run: LoadedRun, task: Task, *, adapter: Adapter, rank: int | None, base: str, foundation: HuggingFaceSettings
) -> ProcessorConfig:
    """Return the configuration of ``task`` in ``run``, whose LLM loads from ``base`` as ``foundation`` says."""
    injected, heads = run.injector.injected, head_tasks(run, task)
    prompt, key = injected.prompt(task), f"{task.name}: "
    offsets = {name: tuple(offset) for name, offset in run.injector.offsets.items() if name.startswith(key)}
    return ProcessorConfig(
        task=task.model_dump(mode="json"),
        trained=task.name in run.study.train,
        adapter=adapter,
        rank=rank,
        expert_weights=tuple(injected.alpha([task])[0].tolist()),
        foundation=foundation,
        base_model=base,
        prompt=PromptConfig(before_ids=prompt.before, after_ids=prompt.after, answer_ids=prompt.answers),
        shown=(*task.modalities, *(f"{HEAD}{name}" for name in heads)),
        modalities={name: modality_config(run, name) for name in task.modalities},
        heads=heads,
        calibration={name.removeprefix(key): offset for name, offset in offsets.items()},
        injection=run.study.injection,
        max_new_tokens=run.study.evaluation.max_new_tokens,
    )


def head_tasks(run: LoadedRun, task: Task) -> tuple[str, ...]:
    """Return the trained tasks whose heads have a token in the prompt of ``task``, in its order."""
    if not run.study.injection.head_tokens:
        return ()
    return tuple(name for name, trained in run.model.tasks.items() if trained.modalities == task.modalities)


def write_processor(run: LoadedRun, config: ProcessorConfig, folder: Path) -> None:
    """Write ``processor/`` into ``folder``."""
    place = folder / FOLDER
    place.mkdir()
    (place / CONFIG).write_text(config.model_dump_json(indent=1, by_alias=True) + "\n", encoding="utf-8")
    projectors = run.injector.injected.projectors
    used = {module_name(name): projectors[module_name(name)] for name in config.tokens}
    save_modules(used, place / "projectors.safetensors")
    save_modules({name: run.model.encoders[name] for name in config.modalities}, place / "encoders.safetensors")
    language = run.injector.injected.foundation
    texts = {"before": config.prompt.before_ids, "after": config.prompt.after_ids}
    embedded = {name: language.embed(ids).detach().cpu().contiguous() for name, ids in texts.items()}
    save_file(embedded, place / "prompt.safetensors")
    if config.heads:
        save_modules({name: run.model.heads[name] for name in config.heads}, place / "heads.safetensors")


def save_modules(modules: Mapping[str, nn.Module], path: Path) -> None:
    """Write the weights and buffers of ``modules``, by name, to one safetensors file."""
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous().clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    save_file(tensors, path)


def modality_config(run: LoadedRun, name: str) -> ModalityConfig:
    """Return how ``run`` reads the modality ``name``."""
    modality, spec, moments = run.study.modality(name), run.study.encoders[name], run.moments[name]
    return ModalityConfig(
        settings=modality.model_dump(mode="json"),
        units=modality.units,
        sample_shape=modality.sample_shape,
        prepare=inspect.getdoc(modality.prepare) or "",
        normalise=inspect.getdoc(modality.normalise) or "",
        mean=tuple(moments.mean.tolist()),
        std=tuple(moments.std.tolist()),
        encoder={"name": spec.name, **spec.model_dump(mode="json")},
        dim=cast(Encoder, run.model.encoders[name]).dim,
    )
