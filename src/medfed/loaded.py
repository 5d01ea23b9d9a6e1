"""A finished run as a model in memory: its study, its injected LLM, and the moments its inputs are normalised by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
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

Samples = Mapping[str, Shaped[np.ndarray, "..."]]
"""Raw arrays of one example by modality, as a dataset's ``load`` returns them."""
QUESTION_MODALITY = "question"
"""A modality that is the question itself: closed visual question answering reads it beside the image."""


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

    def ask(self, task: Task, samples: Samples) -> dict[str, float]:
        """Return the probability of every answer, given raw arrays by modality; a modality may be absent."""
        return dict(zip(task.answers, self.scores(task, [samples])[0], strict=True))

    def answer(self, task: Task, samples: Samples) -> str:
        """Return the decoded answer to the task's question; samples as in :meth:`ask`."""
        return self.answers(task, [samples])[0]

    def scores(self, task: Task, samples: Sequence[Samples], questions: Sequence[str] = ()) -> list[list[float]]:
        """Return the probability of every answer, for each of ``samples`` in one batch.

        Args:
            task: what is asked.
            samples: of every example raw arrays by modality; a modality may be absent.
            questions: of every example, where the task has none of its own.
        """
        with torch.inference_mode():
            probabilities: list[list[float]] = self.injector.score(task, self.batch(task, samples, questions)).tolist()
        return probabilities

    def answers(self, task: Task, samples: Sequence[Samples], questions: Sequence[str] = ()) -> list[str]:
        """Return the decoded answers; arguments as in :meth:`scores`."""
        with torch.inference_mode():
            batch = self.batch(task, samples, questions)
            return self.injector.answer(task, batch, self.study.evaluation.max_new_tokens)

    def sureness(self, task: Task, samples: Samples, question: str, answer: str) -> float | None:
        """Return the geometric mean of the probabilities of the tokens of ``answer``; None if it has none.

        The model may have spelled the answer in other tokens; it is read as the tokenizer spells it.
        """
        if not answer:
            return None
        said = task.model_copy(update={"answers": (answer,)})
        with torch.inference_mode():
            likelihood = self.injector.log_likelihoods(said, self.batch(said, [samples], [question])).item()
        return math.exp(likelihood / len(self.injector.injected.prompt(said).answers[0]))

    def experts(self, task: Task) -> list[float]:
        """Return the weight of every expert for ``task``; none where nothing is routed."""
        if self.injector.injected.routed is None:
            return []
        weights: list[float] = self.injector.routing([task])[0].tolist()
        return weights

    def batch(self, task: Task, samples: Sequence[Samples], questions: Sequence[str] = ()) -> Batch:
        """Return normalised ``samples`` as one batch; arguments as in :meth:`scores`."""
        inputs, present = {}, {}
        for name in task.modalities:
            raw = [self._raw(name, sample, question) for sample, question in zip_longest(samples, questions)]
            modality = self.study.modality(name)
            values = np.zeros((len(raw), *modality.sample_shape), np.float32)
            there = np.array([value is not None for value in raw], bool)
            if there.any():
                kept = np.stack([modality.prepare(value) for value in raw if value is not None])
                moments = self.moments[name]
                values[there] = modality.normalise(kept, moments.mean, moments.std)
            inputs[name], present[name] = torch.from_numpy(values), torch.from_numpy(there)
        unknown = torch.zeros(len(samples), dtype=torch.long)
        return Batch(inputs, present, unknown, questions=() if task.question else tuple(questions))

    @staticmethod
    def _raw(name: str, sample: Samples, question: str | None) -> Shaped[np.ndarray, "..."] | None:
        """Return what there is of a modality; the modality ``question`` is the question itself."""
        if name == QUESTION_MODALITY and name not in sample and question:
            return np.frombuffer(question.encode(), np.uint8)
        return sample.get(name)
