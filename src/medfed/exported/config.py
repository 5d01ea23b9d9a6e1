"""What an exported task needs beside the LLM, as ``processor/processor.json`` says it.

The prompt is ``before_ids``, the projected tokens of everything in ``shown`` that is there, ``after_ids``; absent
modalities are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped
from pydantic import BaseModel, ConfigDict, ValidationError

from medfed import __version__
from medfed.errors import RunError
from medfed.injection.foundation import HuggingFaceSettings
from medfed.injection.prompt import ANSWER, CUE, QUESTION
from medfed.injection.settings import InjectionSettings
from medfed.modalities import ENCODERS, MODALITIES
from medfed.modalities.base import EncoderSpec, Modality
from medfed.registry import lookup

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
        return lookup(ENCODERS, fields.pop("name"), "encoder").model_validate(fields)

    def normalised(self, raw: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "*sample"]:
        """Return a raw array as a normalised sample."""
        modality = self.modality()
        sample = modality.prepare(raw)[None]
        normalised: np.ndarray = modality.normalise(sample, np.array(self.mean), np.array(self.std))[0]
        return normalised


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
        base_model: its name on the Hub, or its folder; of a merged model the name alone.
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
