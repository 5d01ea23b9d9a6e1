"""Answers of a loaded run to raw arrays, one example at a time."""

from __future__ import annotations

from medfed.runs.loaded import LoadedRun, Samples
from medfed.tasks.base import Task


def probabilities(run: LoadedRun, task: Task, raw: Samples) -> dict[str, float]:
    """Return the probability of every answer, given raw arrays by modality; a modality may be absent."""
    return dict(zip(task.answers, run.scores(task, [_samples(run, raw)])[0], strict=True))


def text(run: LoadedRun, task: Task, raw: Samples) -> str:
    """Return the decoded answer to the task's question."""
    return run.answers(task, [_samples(run, raw)])[0].text


def _samples(run: LoadedRun, raw: Samples) -> Samples:
    return {name: run.sample(name, values) for name, values in raw.items()}
