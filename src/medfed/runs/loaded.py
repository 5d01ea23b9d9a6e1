"""A finished run as a model in memory: its study, its injected LLM, and the moments its inputs are normalised by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped

from medfed.core.errors import RunError
from medfed.core.progress import Reporter
from medfed.core.torch_rng import one_thread
from medfed.core.types import Batch
from medfed.data.cohort import cohort_of
from medfed.data.decode import decode_all
from medfed.data.sites import moments_of
from medfed.data.sources import find_sources
from medfed.federated.state import FederatedState, load_weights, split
from medfed.injection.inject import Injector
from medfed.llm.decoding import Words
from medfed.llm.obtain.recorded import Places, load_recorded
from medfed.models.multimodal import MultimodalModel
from medfed.records.folder import RunFolder
from medfed.records.schema import InjectionFile, Json, NormalisationFile, ProvenanceFile, StudyFile
from medfed.report.controls import run_tables
from medfed.runs.checkpoints import Checkpoints
from medfed.runs.context import RunPaths
from medfed.runs.federation import GROUPS, build_multimodal
from medfed.runs.predictors import INJECTED, InjectedPredictor
from medfed.runs.provenance import load_plugins_of
from medfed.study.study import Study
from medfed.tasks.base import Task

Samples = Mapping[str, Shaped[np.ndarray, "..."]]
"""Arrays of one example by modality."""


class LoadedRun:
    """A finished run: its study, its injected LLM and the moments its inputs are normalised by.

    The LLM is found by what the run recorded. ``note`` is a sentence where an old run recorded too little to compare.
    Raises StudyError if the LLM is not here, or what is here is another.
    """

    @one_thread()
    def __init__(self, folder: Path, cache: Path, foundation: Path | None) -> None:
        run = RunFolder(folder)
        run.require_done()
        load_plugins_of(run)
        self.study = Study.model_validate(run.read(StudyFile).settings)
        if self.study.job != "inject":
            raise RunError("a benchmark has no LLM to ask", where=folder, hint="use a run of an injection study")
        self.moments = moments_of(run.read(NormalisationFile).model_dump()["moments"])
        given = run.read(ProvenanceFile).corpus
        corpus = Path(given) if given else None
        facts, places = run.read(ProvenanceFile).foundation, Places(foundation, cache, corpus)
        language, self.note = load_recorded(self.study.foundation, facts, places)
        self.model: MultimodalModel = build_multimodal(self.study)
        self.injector = Injector(language, self.model, self.study.tasks, self.study.injection, self.study.seed)
        tensors, _ = Checkpoints(folder).load() or ({}, {})
        parts = split(tensors, GROUPS)
        load_weights(self.model, FederatedState.from_tensors(parts["federated"]).weights)
        self.injector.load_state(parts["injector"])
        self.injector.offsets = {key: list(values) for key, values in run.read(InjectionFile).offsets.items()}

    def sample(self, name: str, raw: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "*sample"]:
        """Return a raw array of the modality ``name`` as the model reads it: fixed shape, normalised.

        Raises DataError if its shape or its values are not the modality's.
        """
        modality, moments = self.study.modality(name), self.moments[name]
        normalised: np.ndarray = modality.normalise(modality.prepare(raw)[None], moments.mean, moments.std)[0]
        return normalised

    @one_thread()
    def scores(self, task: Task, samples: Sequence[Samples], questions: Sequence[str] = ()) -> list[list[float]]:
        """Return the probability of every answer, for each of ``samples`` in one batch.

        A sample is what :meth:`sample` returns, by modality; a modality may be absent. Every example has one of the
        ``questions``, where the task has none of its own.
        """
        with torch.inference_mode():
            probabilities: list[list[float]] = self.injector.score(task, self.batch(task, samples, questions)).tolist()
        return probabilities

    @one_thread()
    def answers(self, task: Task, samples: Sequence[Samples], questions: Sequence[str] = ()) -> list[Words]:
        """Return the decoded answers, marked where they are cut; arguments as in :meth:`scores`."""
        with torch.inference_mode():
            batch = self.batch(task, samples, questions)
            return self.injector.answer(task, batch, self.study.evaluation.max_new_tokens)

    @one_thread()
    def sureness(self, task: Task, samples: Samples, question: str, answer: str) -> float | None:
        """Return the geometric mean of the probabilities of the tokens of ``answer``; None if it has none.

        The model may have spelled the answer in other tokens; it is read as the tokenizer spells it.
        """
        if not answer:
            return None
        answered = task.model_copy(update={"answers": (answer,)})
        with torch.inference_mode():
            likelihood = self.injector.log_likelihoods(answered, self.batch(answered, [samples], [question])).item()
        return math.exp(likelihood / len(self.injector.injected.prompt(answered).answers[0]))

    @one_thread()
    def experts(self, task: Task) -> list[float]:
        """Return the weight of every expert for ``task``; none where nothing is routed."""
        if self.injector.injected.routed is None:
            return []
        weights: list[float] = self.injector.routing([task])[0].tolist()
        return weights

    def batch(self, task: Task, samples: Sequence[Samples], questions: Sequence[str] = ()) -> Batch:
        """Return ``samples`` as one batch; arguments as in :meth:`scores`."""
        shapes = {name: self.study.modality(name).sample_shape for name in task.modalities}
        return Batch.unanswered(samples, shapes, () if task.question else tuple(questions))


@one_thread()
def evaluate_again(folder: Path, paths: RunPaths, reporter: Reporter) -> None:
    """Predict with a finished run's last checkpoint and compare with the predictions it wrote.

    Raises RunError if the run is not finished, or a prediction differs.
    """
    run = LoadedRun(folder, paths.cache, paths.foundation)
    study = run.study
    if run.note:
        reporter.say(f"note: {run.note}")
    sources, reading = find_sources(study, paths.data_root, paths.cache, reporter), paths.reading(reporter)
    cohort = cohort_of(study, sources, decode_all(study, sources.roots, reading), reading)
    predictor = InjectedPredictor(run.injector, study.evaluation.max_new_tokens)
    for task in study.tasks:
        lines = RunFolder(folder).predictions(task.name)
        again = predictor(cohort.test[task.name])[INJECTED]
        if not _same(again, [line.responses[INJECTED] for line in lines]):
            what = f"the predictions of {task.name!r} differ"
            raise RunError(what, where=folder, hint="check data root and versions")
        reporter.say(f"{task.name}: {len(lines)} predictions, all as written")
    reporter.console.print(*run_tables(folder))


def _same(again: Sequence[Json], before: Sequence[Json]) -> bool:
    """Whether two columns of responses agree: texts exactly, probabilities but for rounding."""
    if again and isinstance(again[0], dict):
        texts = [[response["text"] for response in column] for column in (again, before)]
        again, before = ([response["probabilities"] for response in column] for column in (again, before))
        if texts[0] != texts[1]:
            return False
    return bool(np.allclose(np.array(again), np.array(before, np.float64), atol=1e-6))
