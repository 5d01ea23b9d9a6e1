"""The mean AUROC over clinical pictures, with paired intervals: patients are drawn once for all pictures and models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from medfed.evaluation.bootstrap import Replicates, interval, resample_weights
from medfed.evaluation.controls import leading
from medfed.evaluation.responses import TaskResponses, is_constant
from medfed.records.schema import PictureMean
from medfed.study.evaluation import EvaluationSettings

METRIC = "auroc"


def picture_means(
    tasks: Sequence[TaskResponses], seed: int, settings: EvaluationSettings | None = None
) -> tuple[PictureMean, ...]:
    """Return the mean of every model that answered all ``tasks``, then the leading model minus every other one.

    The pairs of ``settings.comparisons`` follow.

    A resample draws patients of all tasks together. A task with one class is left out of all
    means. Of a resample in which a class vanished from a task, the mean is over the other tasks.
    """
    settings = settings or EvaluationSettings()
    tasks = [task for task in tasks if len(set(task.truths)) == 2]
    if not tasks:
        return ()
    models = [model for model in tasks[0].responses if all(model in task.responses for task in tasks)]
    models = [model for model in models if not is_constant(model) and all(task.answered[model].all() for task in tasks)]
    patients = sorted({patient for task in tasks for patient in task.patients})
    rows = {patient: row for row, patient in enumerate(patients)}
    places = [np.array([rows[patient] for patient in task.patients]) for task in tasks]
    parts: list[Float[np.ndarray, "model replicate"]] = []
    for weights in resample_weights(patients, settings.num_resamples, seed, "pictures", "bootstrap"):
        by_task = [
            [task.weighted(model, None, METRIC, weights[:, place]) for model in models]
            for task, place in zip(tasks, places, strict=True)
        ]
        parts.append(np.nanmean(by_task, axis=0))
    drawn = np.concatenate(parts, axis=1)
    points = np.array([[task.score(model, None, METRIC).value for model in models] for task in tasks]).mean(0)
    made: list[tuple[str, str | None, float, Replicates]] = []
    made += [(model, None, points[row], drawn[row]) for row, model in enumerate(models)]
    first = leading(models)
    pairs = [(first, model) for model in models if model != first]
    for model, baseline in dict.fromkeys([*pairs, *settings.comparisons]):
        if model in models and baseline in models:
            a, b = models.index(model), models.index(baseline)
            made.append((model, baseline, points[a] - points[b], drawn[a] - drawn[b]))
    rows_made = []
    for model, baseline, value, values in made:
        bounds = interval(values, len(patients), settings)
        facts = {"value": float(value), "ci_low": bounds.low, "ci_high": bounds.high}
        counts = {"num_tasks": len(tasks), "num_patients": len(patients)}
        rows_made.append(PictureMean(model=model, baseline=baseline, **facts, **counts))
    return tuple(rows_made)
