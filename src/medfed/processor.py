"""What an exported task needs beside the LLM: how a sample becomes prompt embeddings, as JSON and safetensors.

``processor/`` of an export holds ``processor.json`` (:class:`ProcessorConfig`), ``encoders.safetensors``,
``projectors.safetensors`` and, where the recipe shows the LLM what the heads say, ``heads.safetensors``. The prompt is
``before_ids``, the projected tokens of everything in ``shown`` that is there, ``after_ids``; absent modalities are left
out. :class:`medfed.exported.ExportedTask` reads it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from medfed import __version__
from medfed.errors import RunError
from medfed.injection.encoding import HEAD
from medfed.injection.foundation import HuggingFaceSettings
from medfed.injection.prompt import ANSWER, CUE, QUESTION
from medfed.injection.settings import InjectionSettings
from medfed.loaded import LoadedRun
from medfed.modalities import ENCODERS, MODALITIES
from medfed.modalities.base import Encoder, EncoderSpec, Modality
from medfed.registry import lookup
from medfed.tasks.base import Task

FOLDER, CONFIG = "processor", "processor.json"
Adapter = Literal["lora", "merged", "none"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModalityConfig(_Frozen):
    """One modality: from a raw array to encoder tokens.

    Attributes:
        settings: of the modality, under its registry name.
        units: of raw arrays and of samples before they are normalised.
        sample_shape: of one prepared sample.
        prepare: what is done to a raw array, in words.
        normalise: what is done with ``mean`` and ``std``, in words.
        mean: per channel, pooled over the hospitals' training examples.
        std: likewise.
        encoder: the encoder's settings, with its registry name.
        dim: width of the encoder's tokens.
    """

    settings: dict[str, Any]
    units: str
    sample_shape: tuple[int, ...]
    prepare: str
    normalise: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    encoder: dict[str, Any]
    dim: int

    def modality(self) -> Modality:
        """Return the modality with these settings."""
        return type(lookup(MODALITIES, self.settings["name"], "modality")).model_validate(self.settings)

    def spec(self) -> EncoderSpec:
        """Return the encoder's settings."""
        fields = dict(self.encoder)
        return lookup(ENCODERS, fields.pop("name"), "encoder").model_validate(fields)  # type: ignore[type-var]

    def normalised(self, raw: np.ndarray) -> Tensor:
        """Return a raw array as a batch of one sample, ``[1, *sample]``."""
        modality = self.modality()
        sample = modality.prepare(raw)[None]
        return torch.from_numpy(modality.normalise(sample, np.array(self.mean), np.array(self.std)))


class PromptConfig(_Frozen):
    """The prompt's texts and their token ids; ``answer_ids`` by answer, in the order of the task's answers."""

    question: str = QUESTION
    cue: str = CUE
    answer: str = ANSWER
    before_ids: tuple[int, ...]
    after_ids: tuple[int, ...]
    answer_ids: tuple[tuple[int, ...], ...]


class ProcessorConfig(_Frozen):
    """Everything in ``processor.json``.

    Attributes:
        format: version of this file's layout.
        medfed: version that wrote it.
        task: name, question, answers, modalities and descriptions of the task.
        trained: whether the run trained it; else it was routed by its description alone.
        adapter: how the folder holds the experts.
        rank: of the LoRA; null where there is none.
        expert_weights: α of the task, folded into the LoRA.
        foundation: how the LLM is loaded.
        base_model: its name on the Hub, or its folder.
        prompt: texts and ids; of an open task those without a question.
        shown: what stands between ``before_ids`` and ``after_ids``, in that order.
        modalities: by name.
        heads: trained tasks whose heads' outputs are shown, in order.
        calibration: question → log-likelihood that is taken off every answer.
        injection: settings of the run; of the prompt and the projectors only they matter here.
        max_new_tokens: of an answer in words.
    """

    format: Literal[1] = 1
    medfed: str = __version__
    task: dict[str, Any]
    trained: bool
    adapter: Adapter
    rank: int | None
    expert_weights: tuple[float, ...]
    foundation: HuggingFaceSettings
    base_model: str
    prompt: PromptConfig
    shown: tuple[str, ...]
    modalities: dict[str, ModalityConfig]
    heads: tuple[str, ...]
    calibration: dict[str, tuple[float, ...]]
    injection: InjectionSettings
    max_new_tokens: int

    @classmethod
    def read(cls, folder: Path) -> ProcessorConfig:
        """Read the configuration of the exported task in ``folder``.

        Raises:
            RunError: it is not there, or of another version.
        """
        path = folder / FOLDER / CONFIG
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            hint = "pass a folder that `medfed export RUN --task TASK --out DIR` wrote"
            raise RunError("not an exported task", where=path, hint=hint) from error
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            hint = "export the run again with this version of medfed"
            raise RunError(f"{place}: {problem['msg']}", where=path, hint=hint) from error


def processor_of(
    run: LoadedRun, task: Task, *, adapter: Adapter, rank: int | None, base: str, foundation: HuggingFaceSettings
) -> ProcessorConfig:
    """Return the configuration of ``task`` in ``run``, whose LLM loads from ``base`` as ``foundation`` says."""
    injected, heads = run.injector.injected, head_tasks(run, task)
    prompt = injected.prompt(task)
    key = f"{task.name}: "
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
        calibration={
            name.removeprefix(key): tuple(offset)
            for name, offset in run.injector.offsets.items()
            if name.startswith(key)
        },
        injection=run.study.injection,
        max_new_tokens=run.study.evaluation.max_new_tokens,
    )


def head_tasks(run: LoadedRun, task: Task) -> tuple[str, ...]:
    """Return the trained tasks whose heads speak in the prompt of ``task``, in the order in which they do."""
    if not run.study.injection.head_tokens:
        return ()
    return tuple(name for name, trained in run.model.tasks.items() if trained.modalities == task.modalities)


def write_processor(run: LoadedRun, config: ProcessorConfig, folder: Path) -> None:
    """Write ``processor/`` into ``folder``."""
    place = folder / FOLDER
    place.mkdir()
    (place / CONFIG).write_text(config.model_dump_json(indent=1) + "\n", encoding="utf-8")
    projectors = run.injector.injected.projectors
    shown = {module_name(name): projectors[module_name(name)] for name in config.shown}
    save_modules(shown, place / "projectors.safetensors")
    save_modules({name: run.model.encoders[name] for name in config.modalities}, place / "encoders.safetensors")
    if config.heads:
        save_modules({name: run.model.heads[name] for name in config.heads}, place / "heads.safetensors")


def module_name(shown: str) -> str:
    """Return the projector's name of what is shown: PyTorch allows no dot in a module's name."""
    return shown.replace(".", "-")


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
