"""Rows of a dataset by task and place: what cohorts and sites are laid out with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from jaxtyping import Int

from medfed.datasets.decode import Decoded
from medfed.datasets.split import roster
from medfed.errors import DataError
from medfed.tasks.base import Task, TaskSet

Rows = Int[np.ndarray, " row"]
NO_ROWS = np.zeros(0, np.int64)


def rosters(data: Mapping[str, Decoded], tasks: Sequence[Task]) -> dict[str, pl.DataFrame]:
    """Return dataset → the roster of its tasks' examples (:func:`medfed.datasets.split.roster`)."""
    return {name: roster(data[name].index, *columns_of(tasks, name)) for name in sorted({t.dataset for t in tasks})}


def columns_of(tasks: Sequence[Task], dataset: str) -> tuple[list[str], list[str]]:
    """Return the target and the stratum columns of the tasks of ``dataset``."""
    own = [task for task in tasks if task.dataset == dataset]
    return (
        [column for task in own for column in task.target_columns],
        [column for task in own for column in task.stratum_columns],
    )


def laid_out(
    data: Mapping[str, Decoded], tasks: Sequence[Task], places: Mapping[str, str], wanted: Sequence[str]
) -> dict[str, dict[str, Rows]]:
    """Return place → task → rows; one pass over the examples, however many places are ``wanted``."""
    found = {task.name: rows_by_place(data[task.dataset], task, places) for task in tasks}
    return {place: {name: rows.get(place, NO_ROWS) for name, rows in found.items()} for place in wanted}


def rows_by_place(decoded: Decoded, task: Task, places: Mapping[str, str]) -> dict[str | None, Rows]:
    """Return place → rows of the task whose patient is there, in order; None stands for no place at all."""
    patients, found = decoded.index["patient"].to_list(), dict[str | None, list[int]]()
    for row in np.flatnonzero(task.usable(decoded)).tolist():
        found.setdefault(places.get(patients[row]), []).append(row)
    return {place: np.array(rows, np.int64) for place, rows in found.items()}


def require_examples(task: Task, parts: Mapping[str, Rows], where: str | None = None) -> None:
    """Raise :class:`DataError` where the task has no row in one of the named ``parts``."""
    for part, rows in parts.items():
        if not len(rows):
            raise DataError(
                f"task {task.name!r} has no {part} example left",
                where=where or task.dataset,
                hint="give it more data, change split.ratios, or take the task out of the study",
            )


def ids_by_dataset(sets: Mapping[str, TaskSet]) -> dict[str, list[str]]:
    """Return dataset → sorted ids of the examples in ``sets``."""
    ids: dict[str, pl.Series] = {}
    for examples in sets.values():
        mine = examples.data.index["example"].gather(examples.rows)
        dataset = examples.task.dataset
        ids[dataset] = pl.concat([ids[dataset], mine]).unique() if dataset in ids else mine
    return {dataset: series.sort().to_list() for dataset, series in sorted(ids.items())}
