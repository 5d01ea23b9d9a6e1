"""From raw arrays to prompt embeddings, without the LLM: encoders, projectors, heads and the texts around them.

What a client of a server that takes prompt embeddings needs; :class:`medfed.exported.ExportedTask` has the LLM too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from safetensors.torch import load_file
from torch import Tensor, nn

from medfed.errors import RunError, StudyError
from medfed.exported.config import FOLDER, ProcessorConfig
from medfed.exported.sums import check_sums
from medfed.injection.encoding import HEAD, encode, with_heads
from medfed.injection.projector import Projector, module_name
from medfed.models.multimodal import MultimodalModel
from medfed.registry import lookup
from medfed.tasks import TASKS
from medfed.tasks.base import Task
from medfed.types import Batch

Samples = Mapping[str, Shaped[np.ndarray, "..."]]
"""Raw arrays by modality, in the units that ``processor.json`` names; a modality may be absent."""


class Around(NamedTuple):
    """The embedded texts before and behind the tokens of a sample."""

    before: Float[Tensor, "before width"]
    after: Float[Tensor, "after width"]


class Processor:
    """The processor of one exported task.

    Attributes:
        config: what ``processor.json`` says.
        task: the task with the question and answers that were exported.
        model: encoders and heads.
        projectors: from their tokens to the LLM's width, by module name.
    """

    def __init__(self, config: ProcessorConfig, around: Around) -> None:
        self.config, self.task, self._device = config, _task(config), "cpu"
        self._around = around
        self.model = _encoders(config).eval()
        dims = {name: modality.dim for name, modality in config.modalities.items()}
        dims |= {f"{HEAD}{name}": len(lookup(TASKS, name, "task").answers) for name in config.heads}
        width, kind = around.before.shape[1], config.injection.projector
        self.projectors = nn.ModuleDict(
            {module_name(name): Projector(kind, dims[name], width, 1.0) for name in config.shown}
        )

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> Processor:
        """Load the processor of the task that `medfed export RUN --task TASK --out FOLDER` wrote.

        Raises:
            RunError: a file is missing, damaged, or lacks a tensor.
        """
        config = ProcessorConfig.read(folder)
        check_sums(folder)
        place = folder / FOLDER
        processor = cls(config, Around(**load_file(place / "prompt.safetensors")))
        _load(processor.projectors, place / "projectors.safetensors")
        _load(processor.model.encoders, place / "encoders.safetensors")
        if config.heads:
            _load(processor.model.heads, place / "heads.safetensors")
        return processor.move_to(device)

    def move_to(self, device: str) -> Processor:
        """Move everything to ``device``."""
        self._device, self._around = device, Around(*(part.to(device) for part in self._around))
        self.model.to(device)
        self.projectors.to(device)
        return self

    @torch.inference_mode()
    def embeddings(self, samples: Samples, around: Around | None = None) -> Float[Tensor, "position width"]:
        """Return the whole prompt as the LLM's ``inputs_embeds``, up to the answer cue, without padding.

        Args:
            samples: raw arrays by modality.
            around: other texts than the exported question's.

        Raises:
            StudyError: nothing is given, or a modality that the task does not read.
        """
        before, after = around or self._around
        encoded = encode(self.model, [(self.task, self.batch(samples))])[0]
        if self.config.heads:
            encoded = with_heads(self.model, self.task, encoded, 1)
        shown = [self.projectors[module_name(name)](encoded[name])[0] for name in self.config.shown if name in encoded]
        return torch.cat([before, *(tokens.to(before.dtype) for tokens in shown), after])

    def batch(self, samples: Samples) -> Batch:
        """Return raw arrays as a normalised batch of one example."""
        if unknown := sorted(samples.keys() - self.config.modalities.keys()):
            known = ", ".join(self.config.modalities)
            raise StudyError(f"the task reads {known}, not {unknown[0]!r}", where=self.task.name, hint="leave it out")
        if not samples:
            raise StudyError("nothing is given", where=self.task.name, hint="give at least one modality")
        modalities = self.config.modalities
        normalised = {name: modalities[name].normalised(raw) for name, raw in samples.items()}
        shapes = {name: modality.sample_shape for name, modality in modalities.items()}
        return Batch.asked([normalised], shapes).to(self._device)


def _task(config: ProcessorConfig) -> Task:
    known = lookup(TASKS, config.task["name"], "task")
    return type(known).model_validate(config.task)


def _encoders(config: ProcessorConfig) -> MultimodalModel:
    """Return encoders and heads, freshly initialised: heads where they speak, encoders of all modalities."""
    specs = {name: modality.spec() for name, modality in config.modalities.items()}
    kinds = {name: modality.modality() for name, modality in config.modalities.items()}
    model = MultimodalModel(specs, kinds, tuple(lookup(TASKS, name, "task") for name in config.heads))
    for name, spec in specs.items():
        if name not in model.encoders:
            model.encoders[name] = spec.build(kinds[name])
    return model


def _load(modules: nn.ModuleDict, path: Path) -> None:
    tensors, expected = load_file(path), modules.state_dict()
    if wrong := sorted(expected.keys() ^ tensors.keys()):
        side = "is missing" if wrong[0] in expected else "does not belong here"
        hint = "export the run again with this version of medfed"
        raise RunError(f"tensor {wrong[0]!r} {side}", where=path, hint=hint)
    modules.load_state_dict(tensors)
