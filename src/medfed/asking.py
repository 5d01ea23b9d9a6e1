"""Put a question about a file to a finished run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Shaped

from medfed.datasets.base import read_csv
from medfed.datasets.images import read_dicom, read_grey
from medfed.datasets.ptbxl import read_wfdb
from medfed.errors import DataError, StudyError
from medfed.loaded import LoadedRun
from medfed.modalities.timeseries import TimeSeriesModality
from medfed.registry import lookup
from medfed.study import Study
from medfed.tasks import TASKS
from medfed.tasks.base import Task
from medfed.tasks.question_answering import QuestionAnswering


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
