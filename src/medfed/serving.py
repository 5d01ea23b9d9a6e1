"""A finished run as a model one can ask: load it, export its parts, put a question about one file to it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import torch
from jaxtyping import Shaped
from safetensors.torch import save_file

from medfed.arm import GROUPS, build_multimodal
from medfed.datasets.base import read_csv
from medfed.datasets.images import read_dicom, read_grey
from medfed.datasets.ptbxl import read_wfdb
from medfed.errors import DataError, RunError, StudyError
from medfed.federated.state import FederatedState, load_weights, split, trainable_params
from medfed.injection.foundation import load_foundation
from medfed.injection.inject import Injector
from medfed.modalities.moments import Moments
from medfed.modalities.timeseries import TimeSeriesModality
from medfed.models.multimodal import MultimodalModel
from medfed.registry import lookup
from medfed.rundir import RunDir
from medfed.study import Study
from medfed.tasks import TASKS
from medfed.tasks.base import Task
from medfed.tasks.question_answering import QuestionAnswering
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


def ask(
    folder: Path, file: Path, task_name: str, question: str | None, cache: Path, foundation: Path | None
) -> dict[str, float] | str:
    """Ask the run in ``folder`` about one file: the answers' probabilities, or for an open task the answer's text.

    Raises:
        MedfedError: the run, the task or the file is not what it should be.
    """
    task = lookup(TASKS, task_name, "task")
    if question is not None:
        task = task.model_copy(update={"question": question})
    if not task.question:
        raise StudyError("an open task has no question of its own", where=task_name, hint="ask one with --question")
    run = LoadedRun(folder, cache, foundation)
    unknown = [name for name in task.modalities if name not in run.study.encoders]
    if unknown:
        raise StudyError(f"the run has no encoder for {unknown[0]!r}", where=folder, hint="ask with a task it knows")
    samples = read_input(run.study, task, file)
    return run.answer(task, samples) if isinstance(task, QuestionAnswering) else run.ask(task, samples)


def read_input(study: Study, task: Task, file: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Decode ``file`` for the modalities of ``task``: a picture, a WFDB header, or a CSV of hours × variables."""
    if not file.is_file():
        raise DataError("no such file", where=file, hint="check --file")
    if task.modalities == ("image",):
        return {"image": read_dicom(file) if file.suffix == ".dcm" else read_grey(file)}
    if task.modalities == ("ecg",):
        return {"ecg": read_wfdb(file.with_suffix(".hea"), file.with_suffix(".dat"))}
    table = read_csv(file, ()).cast(pl.Float64, strict=False)
    samples = {}
    for name in task.modalities:
        modality = study.modality(name)
        if isinstance(modality, TimeSeriesModality):
            known = [pl.col(v) if v in table.columns else pl.lit(None, pl.Float64).alias(v) for v in modality.variables]
            samples[name] = table.select(known).fill_null(float("nan")).to_numpy()
    return samples


def export_run(folder: Path, out: Path, cache: Path, foundation: Path | None) -> None:
    """Write the run's adapter (PEFT), encoders and projectors (safetensors) and settings to the new folder ``out``.

    Raises:
        RunError: ``out`` exists, or the run is not finished.
    """
    if out.exists():
        raise RunError("the folder exists", where=out, hint="choose another --out, or remove it")
    run = LoadedRun(folder, cache, foundation)
    run.injector.save(out)
    encoders = {name: value.detach().contiguous() for name, value in trainable_params(run.model.encoders).items()}
    save_file(encoders, out / "encoders.safetensors")
    for name in ("study.json", "normalisation.json", "scores.json"):
        shutil.copyfile(folder / name, out / name)
