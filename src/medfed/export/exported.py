"""An exported task in memory, from its folder alone: raw arrays in, prompt embeddings or answers out.

``processor/processor.json`` has the facts that it needs next to the LLM. The prompt is ``before_ids``, the projected
tokens of everything in ``shown`` that is there, and ``after_ids``; absent modalities are left out.

A client of a server that takes prompt embeddings needs :class:`Processor`. :class:`ExportedTask` has the LLM too: stock
transformers and stock PEFT, or a merged model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Shaped
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from medfed import __version__
from medfed.core.catalog import ENCODERS, MODALITIES, TASKS
from medfed.core.errors import RunError, StudyError
from medfed.core.files import sha256_of
from medfed.core.types import Batch
from medfed.injection.encode import HEAD, encode, token_dims, with_head_tokens
from medfed.injection.experts import load_experts
from medfed.injection.model import InjectedModel, Projector, module_name
from medfed.injection.predict import LLMPredictor
from medfed.llm.foundation import Foundation, load_foundation
from medfed.llm.obtain.cached import users_cache
from medfed.llm.obtain.known import KNOWN
from medfed.llm.prompt import ANSWER, CUE, QUESTION
from medfed.modalities.base import Modality
from medfed.models.multimodal import MultimodalModel
from medfed.study.foundation import HuggingFaceSettings
from medfed.study.injection import InjectionSettings
from medfed.study.parts import EncoderSpec
from medfed.tasks.base import Task

FOLDER, CONFIG = "processor", "processor.json"
Adapter = Literal["lora", "merged", "none"]
_AGAIN = "export the run again with this version of medfed"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModalityConfig(_Frozen):
    """One modality, from a raw array to encoder tokens of the width ``dim``.

    ``settings`` are the modality's and ``encoder`` the encoder's, with their registry names. ``units`` are those of raw
    arrays and of samples before they are normalised; ``prepare`` and ``normalise`` say in words what is done to them.
    ``mean`` and ``std`` are per channel, pooled over the hospitals' training examples.
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
        return type(MODALITIES.lookup(self.settings["name"])).model_validate(self.settings)

    def spec(self) -> EncoderSpec:
        """Return the encoder's settings."""
        fields = {name: value for name, value in self.encoder.items() if name != "name"}
        return ENCODERS.lookup(self.encoder["name"]).model_validate(fields)

    def normalised(self, raw: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "*sample"]:
        """Return a raw array as a normalised sample."""
        modality = self.modality()
        samples = modality.normalise(modality.prepare(raw)[None], np.array(self.mean), np.array(self.std))
        return cast(np.ndarray, samples[0])


class PromptConfig(_Frozen):
    """The prompt's texts and their token ids; ``answer_ids`` by answer, in the order of the task's answers."""

    question: str = QUESTION
    cue: str = CUE
    answer: str = ANSWER
    before_ids: tuple[int, ...]
    after_ids: tuple[int, ...]
    answer_ids: tuple[tuple[int, ...], ...]


class ProcessorConfig(_Frozen):
    """Everything in ``processor.json``; ``format`` is the version of its layout, ``medfed`` the one that wrote it.

    A task that was not ``trained`` was routed by its description alone. ``base_model`` is the LLM's name on the Hub, or
    its folder; of a merged model the name alone.
    """

    format: Literal[1] = 1
    medfed: str = __version__
    task: dict[str, Any]
    trained: bool
    adapter: Adapter
    rank: int | None
    """Of the LoRA; null where there is none."""
    expert_weights: tuple[float, ...]
    """α of the task, folded into the LoRA."""
    foundation: HuggingFaceSettings
    base_model: str
    prompt: PromptConfig
    """Texts and ids; of an open task those without a question."""
    tokens: tuple[str, ...] = Field(alias="shown")
    """Modalities and heads between ``before_ids`` and ``after_ids``, in that order."""
    modalities: dict[str, ModalityConfig]
    heads: tuple[str, ...]
    """Trained tasks whose heads' outputs the prompt holds, in order."""
    calibration: dict[str, tuple[float, ...]]
    """Question → log-likelihood that is taken off every answer."""
    injection: InjectionSettings
    max_new_tokens: int

    @classmethod
    def read(cls, folder: Path) -> ProcessorConfig:
        """Read the exported task in ``folder``; raise RunError if it is not there, or of another version."""
        path = folder / FOLDER / CONFIG
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            hint = "pass a folder that `medfed export RUN --task TASK --out DIR` wrote"
            raise RunError("not an exported task", where=path, hint=hint) from error
        except ValidationError as error:
            problem = error.errors()[0]
            what = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            raise RunError(what, where=path, hint=_AGAIN) from error


Samples = Mapping[str, Shaped[np.ndarray, "..."]]
"""Raw arrays by modality, in the units that ``processor.json`` names; a modality may be absent."""


class Around(NamedTuple):
    """The embedded texts before and behind the tokens of a sample."""

    before: Float[Tensor, "before width"]
    after: Float[Tensor, "after width"]


class Processor:
    """The processor of one exported task: ``model`` holds encoders and heads, ``projectors`` go by module name."""

    def __init__(self, config: ProcessorConfig, around: Around) -> None:
        self.config, self._around, self._device = config, around, "cpu"
        self.task: Task = type(TASKS.lookup(config.task["name"])).model_validate(config.task)
        self.model = _encoders(config).eval()
        dims = {name: modality.dim for name, modality in config.modalities.items()}
        dims |= {f"{HEAD}{name}": len(TASKS.lookup(name).answers) for name in config.heads}
        width, kind = around.before.shape[1], config.injection.projector
        projectors = {module_name(name): Projector(kind, dims[name], width, 1.0) for name in config.tokens}
        self.projectors = nn.ModuleDict(projectors)

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> Processor:
        """Load what `medfed export --task` wrote; raise RunError if a file is missing, damaged, or lacks a tensor."""
        config, place = ProcessorConfig.read(folder), folder / FOLDER
        check_sums(folder)
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

        ``around`` are other texts than the exported question's.
        Raises StudyError if nothing is given, or a modality that the task does not read.
        """
        before, after = around or self._around
        group = encode(self.model, [(self.task, self.batch(samples))])[0]
        encoded = with_head_tokens(self.model, group).encoded if self.config.heads else group.encoded
        given = [name for name in self.config.tokens if name in encoded]
        tokens = [self.projectors[module_name(name)](encoded[name])[0].to(before.dtype) for name in given]
        return torch.cat([before, *tokens, after])

    def batch(self, samples: Samples) -> Batch:
        """Return raw arrays as a normalised batch of one example."""
        modalities = self.config.modalities
        if unknown := sorted(samples.keys() - modalities.keys()):
            what = f"the task reads {', '.join(modalities)}, not {unknown[0]!r}"
            raise StudyError(what, where=self.task.name, hint="leave it out")
        if not samples:
            raise StudyError("nothing is given", where=self.task.name, hint="give at least one modality")
        normalised = {name: modalities[name].normalised(raw) for name, raw in samples.items()}
        shapes = {name: modality.sample_shape for name, modality in modalities.items()}
        return Batch.unanswered([normalised], shapes).to(self._device)


def _encoders(config: ProcessorConfig) -> MultimodalModel:
    """Return encoders and heads, freshly initialised: heads where the prompt holds them, encoders of all modalities."""
    specs = {name: modality.spec() for name, modality in config.modalities.items()}
    kinds = {name: modality.modality() for name, modality in config.modalities.items()}
    model = MultimodalModel(specs, kinds, tuple(TASKS.lookup(name) for name in config.heads))
    for name, spec in specs.items():
        if name not in model.encoders:
            model.encoders[name] = spec.build(kinds[name])
    return model


def _load(modules: nn.ModuleDict, path: Path) -> None:
    tensors, expected = load_file(path), modules.state_dict()
    if wrong := sorted(expected.keys() ^ tensors.keys()):
        side = "is missing" if wrong[0] in expected else "does not belong here"
        raise RunError(f"tensor {wrong[0]!r} {side}", where=path, hint=_AGAIN)
    modules.load_state_dict(tensors)


class ExportedTask:
    """One task of a run as `medfed export --task` wrote it.

    ``foundation`` is the LLM with the task's update in it. All of it runs on ``device``, unless the LLM is placed.
    """

    def __init__(self, processor: Processor, foundation: Foundation, device: str) -> None:
        device, config = foundation.move_to(device), processor.config
        self.processor = processor.move_to(device)
        settings = config.injection.model_copy(update={"num_experts": 0, "device": device})
        dims = token_dims(processor.model, head_tokens=settings.head_tokens)
        injected = InjectedModel(foundation, dims, settings).move_to(device).eval()
        injected.check(processor.task)
        injected.projectors.load_state_dict(processor.projectors.state_dict())
        self._llm = LLMPredictor(processor.model, injected, settings, device)
        name = processor.task.name
        self._llm.offsets = {f"{name}: {question}": list(offset) for question, offset in config.calibration.items()}

    @classmethod
    def load(cls, folder: Path, *, foundation: Path | None = None, device: str = "cpu") -> ExportedTask:
        """Load the task that `medfed export RUN --task TASK --out FOLDER` wrote.

        ``foundation`` is the LLM's folder or its name in medfed's cache, if it is not where ``base_model`` says. That
        is the local Hugging Face cache, or the folder at the time of the export. An LLM in 4 bits stays where it is
        loaded to.

        Raises:
            RunError: a file is missing, damaged, or lacks a tensor.
            StudyError: the LLM cannot be loaded.
        """
        processor = Processor.load(folder)
        return cls(processor, _foundation(processor.config, folder, foundation), device)

    @torch.inference_mode()
    def probabilities(self, samples: Samples, question: str | None = None) -> dict[str, float]:
        """Return the probability of every answer to the task's question, or to another one."""
        task = self._with_question(question)
        scores = self._llm.score(task, self.processor.batch(samples))[0]
        return dict(zip(task.answers, scores.tolist(), strict=True))

    @torch.inference_mode()
    def answer(self, samples: Samples, question: str | None = None) -> str:
        """Return the greedily decoded answer in words."""
        longest = self.processor.config.max_new_tokens
        return self._llm.answer(self._with_question(question), self.processor.batch(samples), longest)[0].text

    @torch.inference_mode()
    def embeddings(self, samples: Samples, question: str | None = None) -> Float[Tensor, "position width"]:
        """Return the whole prompt as the LLM's ``inputs_embeds``; see :meth:`Processor.embeddings`."""
        prompt = self._llm.injected.prompt(self._with_question(question))
        embed = self._llm.injected.foundation.embed
        return self.processor.embeddings(samples, Around(embed(prompt.before), embed(prompt.after)))

    def _with_question(self, question: str | None) -> Task:
        task = self.processor.task
        task = task if question is None else task.model_copy(update={"question": question})
        if not task.question:
            raise StudyError("an open task has no question of its own", where=task.name, hint="give a question")
        return task


def _foundation(config: ProcessorConfig, folder: Path, given: Path | None) -> Foundation:
    """Load the LLM with the task's update in it: the merged model, or the base wrapped by stock PEFT."""
    if config.adapter == "merged":
        return load_foundation(HuggingFaceSettings(dtype=config.foundation.dtype), cache=folder, path=folder)
    base = Path(config.base_model)
    local = config.foundation.model is None or (config.foundation.model in KNOWN and base.is_dir())
    foundation = load_foundation(config.foundation, cache=users_cache(), path=given or (base if local else None))
    if config.adapter == "lora":
        load_experts(foundation.model, folder).requires_grad_(False).eval()
    return foundation


SUMS = "SHA256SUMS"


def check_sums(folder: Path) -> None:
    """Raise RunError if a file listed in ``SHA256SUMS`` is not there, or not whole."""
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
