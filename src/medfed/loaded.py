"""A finished run as a model in memory: its study, its injected LLM, and the moments its inputs are normalised by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped

from medfed.arm import GROUPS, build_multimodal
from medfed.errors import RunError
from medfed.federated.state import FederatedState, load_weights, split
from medfed.injection.foundation import load_foundation
from medfed.injection.inject import Injector
from medfed.modalities.moments import Moments
from medfed.models.multimodal import MultimodalModel
from medfed.rundir import RunDir
from medfed.study import Study
from medfed.tasks.base import Task
from medfed.types import Batch


class LoadedRun:
    """A finished run: its study, its injected LLM and the moments its inputs are normalised by."""

    def __init__(self, folder: Path, cache: Path, foundation: Path | None) -> None:
        torch.set_num_threads(1)
        run = RunDir(folder)
        if not run.done:
            raise RunError(
                "not a finished run", where=folder, hint="finish it: medfed run STUDY goes on from its checkpoint"
            )
        self.study = Study.model_validate(run.read_json("study.json"))
        self.moments = {
            name: Moments(*(np.array(value[key]) for key in ("count", "total", "squares")))
            for name, value in run.read_json("normalisation.json").items()
        }
        corpus = run.read_json("provenance.json")["corpus"]
        language = load_foundation(
            self.study.foundation, cache=cache, corpus=Path(corpus) if corpus else None, path=foundation
        )
        self.model: MultimodalModel = build_multimodal(self.study)
        self.injector = Injector(language, self.model, self.study.tasks, self.study.injection, self.study.seed)
        tensors, _ = run.load_checkpoint() or ({}, {})
        parts = split(tensors, GROUPS)
        load_weights(self.model, FederatedState.from_tensors(parts["federated"]).weights)
        self.injector.load_state(parts["injector"])
        facts = run.read_json("injection/injection.json")
        if "offsets" not in facts:
            raise RunError("made by an earlier version of medfed", where=folder, hint="run the study again")
        self.injector.offsets = facts["offsets"]

    def ask(self, task: Task, samples: Mapping[str, Shaped[np.ndarray, "..."]]) -> dict[str, float]:
        """Return the probability of every answer, given raw arrays by modality; a modality may be absent."""
        with torch.inference_mode():
            scores = self.injector.score(task, self._batch(task, samples))[0]
        return dict(zip(task.answers, scores.tolist(), strict=True))

    def answer(self, task: Task, samples: Mapping[str, Shaped[np.ndarray, "..."]]) -> str:
        """Return the decoded answer to the task's question; samples as in :meth:`ask`."""
        with torch.inference_mode():
            return self.injector.answer(task, self._batch(task, samples), self.study.evaluation.max_new_tokens)[0]

    def _batch(self, task: Task, samples: Mapping[str, Shaped[np.ndarray, "..."]]) -> Batch:
        inputs, present = {}, {}
        for name in task.modalities:
            modality = self.study.modality(name)
            present[name] = torch.tensor([name in samples])
            value = np.zeros((1, *modality.sample_shape), np.float32)
            if name in samples:
                moments = self.moments[name]
                value = modality.normalise(modality.prepare(samples[name])[None], moments.mean, moments.std)
            inputs[name] = torch.from_numpy(value)
        return Batch(inputs, present, torch.zeros(1, dtype=torch.long))
