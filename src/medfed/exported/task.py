"""An exported task in memory, from its folder alone: raw arrays in, prompt embeddings or answers out.

Underneath are stock transformers and stock PEFT, or a merged model; medfed adds the processor and the prompt.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from medfed.errors import StudyError
from medfed.exported.config import ProcessorConfig
from medfed.exported.processor import Around, Processor, Samples
from medfed.injection.answering import Answering
from medfed.injection.encoding import shown_dims
from medfed.injection.experts import load_experts
from medfed.injection.foundation import Foundation, HuggingFaceSettings, load_foundation
from medfed.injection.injected import InjectedModel
from medfed.tasks.base import Task


class ExportedTask:
    """One task of a run as `medfed export --task` wrote it.

    Attributes:
        processor: from raw arrays to the prompt; its ``config`` is what ``processor.json`` says.

    Args:
        processor: of the task; it goes where the LLM is.
        foundation: the LLM with the task's update in it.
        device: where all of it runs, unless the LLM is placed where it stays.
    """

    def __init__(self, processor: Processor, foundation: Foundation, device: str) -> None:
        device, config = foundation.move_to(device), processor.config
        self.processor = processor.move_to(device)
        settings = config.injection.model_copy(update={"num_experts": 0, "device": device})
        dims = shown_dims(processor.model, head_tokens=settings.head_tokens)
        injected = InjectedModel(foundation, dims, settings).move_to(device).eval()
        injected.check(processor.task)
        injected.projectors.load_state_dict(processor.projectors.state_dict())
        self._llm = Answering(processor.model, injected, settings, device)
        name = processor.task.name
        self._llm.offsets = {f"{name}: {asked}": list(offset) for asked, offset in config.calibration.items()}

    @classmethod
    def load(cls, folder: Path, *, foundation: Path | None = None, device: str = "cpu") -> ExportedTask:
        """Load the task in ``folder``.

        Args:
            folder: what `medfed export RUN --task TASK --out FOLDER` wrote.
            foundation: folder of the LLM, if it is not where ``base_model`` says: in the local Hugging Face cache, or
                where it lay when the task was exported.
            device: where the LLM runs; one in 4 bits stays where it is loaded to.

        Raises:
            RunError: a file is missing, damaged, or lacks a tensor.
            StudyError: the LLM cannot be loaded.
        """
        processor = Processor.load(folder)
        return cls(processor, _foundation(processor.config, folder, foundation), device)

    @torch.inference_mode()
    def probabilities(self, samples: Samples, question: str | None = None) -> dict[str, float]:
        """Return the probability of every answer to the task's question, or to another one."""
        task = self._asked(question)
        scores = self._llm.score(task, self.processor.batch(samples))[0]
        return dict(zip(task.answers, scores.tolist(), strict=True))

    @torch.inference_mode()
    def answer(self, samples: Samples, question: str | None = None) -> str:
        """Return the greedily decoded answer in words."""
        longest = self.processor.config.max_new_tokens
        return self._llm.answer(self._asked(question), self.processor.batch(samples), longest)[0]

    @torch.inference_mode()
    def embeddings(self, samples: Samples, question: str | None = None) -> Float[Tensor, "position width"]:
        """Return the whole prompt as the LLM's ``inputs_embeds``; see :meth:`Processor.embeddings`."""
        prompt = self._llm.injected.prompt(self._asked(question))
        embed = self._llm.injected.foundation.embed
        return self.processor.embeddings(samples, Around(embed(prompt.before), embed(prompt.after)))

    def _asked(self, question: str | None) -> Task:
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
    path = given or (base if config.foundation.model is None else None)
    foundation = load_foundation(config.foundation, cache=folder, path=path)
    if config.adapter == "lora":
        load_experts(foundation.model, folder).requires_grad_(False).eval()
    return foundation
