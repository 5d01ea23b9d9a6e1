"""An exported task in memory, from its folder alone: raw arrays in, prompt embeddings or answers out.

Underneath are stock transformers and stock PEFT (or a merged model); medfed adds the encoders, the projectors and the
prompt. A server that takes prompt embeddings needs :meth:`ExportedTask.embeddings` only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from safetensors.torch import load_file
from torch import Tensor, nn

from medfed.errors import RunError, StudyError
from medfed.injection.encoding import encode, with_heads
from medfed.injection.experts import load_experts
from medfed.injection.foundation import Foundation, HuggingFaceSettings, load_foundation
from medfed.injection.inject import Injector
from medfed.models.multimodal import MultimodalModel
from medfed.processor import FOLDER, ProcessorConfig, module_name
from medfed.registry import lookup
from medfed.tasks import TASKS
from medfed.tasks.base import Task
from medfed.types import Batch

SUMS = "SHA256SUMS"
Samples = Mapping[str, Shaped[np.ndarray, "..."]]
"""Raw arrays by modality, in the units that ``processor.json`` names; a modality may be absent."""


class ExportedTask:
    """One task of a run as `medfed export --task` wrote it.

    Attributes:
        config: what ``processor.json`` says.
        task: the task with the question and answers that were exported.
    """

    def __init__(self, config: ProcessorConfig, injector: Injector, model: MultimodalModel, device: str) -> None:
        self.config, self.task = config, _task(config)
        self._injector, self._model, self._device = injector, model, device

    @classmethod
    def load(cls, folder: Path, *, foundation: Path | None = None, device: str = "cpu") -> ExportedTask:
        """Load the task in ``folder``.

        Args:
            folder: what `medfed export RUN --task TASK --out FOLDER` wrote.
            foundation: folder of the LLM, if it does not lie where it lay when the task was exported.
            device: where the LLM runs.

        Raises:
            RunError: a file is missing, damaged, or lacks a tensor.
            StudyError: the LLM cannot be loaded.
        """
        config = ProcessorConfig.read(folder)
        check_sums(folder)
        language = _foundation(config, folder, foundation)
        model = _encoders(config)
        settings = config.injection.model_copy(update={"num_experts": 0, "device": device})
        injector = Injector(language, model, (_task(config),), settings, seed=0)
        projectors = {name: injector.injected.projectors[name] for name in map(module_name, config.shown)}
        _load(projectors, folder / FOLDER / "projectors.safetensors")
        _load({name: model.encoders[name] for name in config.modalities}, folder / FOLDER / "encoders.safetensors")
        if config.heads:
            _load({name: model.heads[name] for name in config.heads}, folder / FOLDER / "heads.safetensors")
        name = config.task["name"]
        injector.offsets = {f"{name}: {question}": list(offset) for question, offset in config.calibration.items()}
        return cls(config, injector, model, device)

    @torch.inference_mode()
    def probabilities(self, samples: Samples, question: str | None = None) -> dict[str, float]:
        """Return the probability of every answer to the task's question, or to another one."""
        task = self._asked(question)
        scores = self._injector.score(task, self._batch(samples))[0]
        return dict(zip(task.answers, scores.tolist(), strict=True))

    @torch.inference_mode()
    def answer(self, samples: Samples, question: str | None = None) -> str:
        """Return the greedily decoded answer in words."""
        return self._injector.answer(self._asked(question), self._batch(samples), self.config.max_new_tokens)[0]

    @torch.inference_mode()
    def embeddings(self, samples: Samples, question: str | None = None) -> Float[Tensor, "position width"]:
        """Return the whole prompt as the LLM's ``inputs_embeds``, up to the answer cue, without padding."""
        task, batch = self._asked(question), self._batch(samples)
        injected = self._injector.injected.eval()
        encoded = encode(self._model.eval(), [(task, batch)])[0]
        if self.config.heads:
            encoded = with_heads(self._model, task, encoded, 1)
        prompt = injected.prompt(task)
        parts = [injected.foundation.embed(prompt.before)]
        for name in self.config.shown:
            if name in encoded:
                tokens: Float[Tensor, "1 tokens width"] = injected.projectors[module_name(name)](encoded[name])
                parts.append(tokens[0].to(parts[0].dtype))
        return torch.cat([*parts, injected.foundation.embed(prompt.after)])

    def _asked(self, question: str | None) -> Task:
        task = self.task if question is None else self.task.model_copy(update={"question": question})
        if not task.question:
            raise StudyError("an open task has no question of its own", where=task.name, hint="give a question")
        return task

    def _batch(self, samples: Samples) -> Batch:
        if unknown := sorted(samples.keys() - self.config.modalities.keys()):
            known = ", ".join(self.config.modalities)
            raise StudyError(f"the task reads {known}, not {unknown[0]!r}", where=self.task.name, hint="leave it out")
        if not samples:
            raise StudyError("nothing is given", where=self.task.name, hint="give at least one modality")
        inputs, present = {}, {}
        for name, modality in self.config.modalities.items():
            present[name] = torch.tensor([name in samples])
            inputs[name] = (
                modality.normalised(samples[name]) if name in samples else torch.zeros(1, *modality.sample_shape)
            )
        return Batch(inputs, present, torch.zeros(1, dtype=torch.long)).to(self._device)


def check_sums(folder: Path) -> None:
    """Make sure that every file listed in ``SHA256SUMS`` is there and whole.

    Raises:
        RunError: one is not.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RunError("no checksums", where=folder / SUMS, hint="export the run again") from error
    for line in lines:
        digest, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file():
            raise RunError("the file is missing", where=path, hint="copy the whole folder")
        if sha256_of(path) != digest:
            raise RunError("the file does not match its checksum", where=path, hint="copy it again, or export again")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _task(config: ProcessorConfig) -> Task:
    known = lookup(TASKS, config.task["name"], "task")
    return type(known).model_validate(config.task)


def _foundation(config: ProcessorConfig, folder: Path, given: Path | None) -> Foundation:
    """Load the LLM with the task's update in it: the merged model, or the base wrapped by stock PEFT."""
    if config.adapter == "merged":
        return load_foundation(HuggingFaceSettings(dtype=config.foundation.dtype), cache=folder, path=folder)
    base = Path(config.base_model)
    path = given or (base if config.foundation.model is None else None)
    foundation = load_foundation(config.foundation, cache=folder, path=path)
    if config.adapter == "lora":
        load_experts(foundation.model, folder).requires_grad_(False).eval()
    return foundation


def _encoders(config: ProcessorConfig) -> MultimodalModel:
    """Return encoders and heads, freshly initialised: heads where they speak, encoders of all modalities."""
    specs = {name: modality.spec() for name, modality in config.modalities.items()}
    kinds = {name: modality.modality() for name, modality in config.modalities.items()}
    model = MultimodalModel(specs, kinds, tuple(lookup(TASKS, name, "task") for name in config.heads))
    for name, spec in specs.items():
        if name not in model.encoders:
            model.encoders[name] = spec.build(kinds[name])
    return model


def _load(modules: Mapping[str, nn.Module], path: Path) -> None:
    tensors = load_file(path)
    holder = nn.ModuleDict(modules)
    expected = holder.state_dict()
    if wrong := sorted(expected.keys() ^ tensors.keys()):
        side = "is missing" if wrong[0] in expected else "does not belong here"
        hint = "export the run again with this version of medfed"
        raise RunError(f"tensor {wrong[0]!r} {side}", where=path, hint=hint)
    holder.load_state_dict(tensors)
