"""Rows of decoded data by task and place: shared by cohorts, sites and the server of a federation.

Modalities can be missing on purpose: a share of clients, or of examples, lacks one. They are drawn from (seed, dataset,
client or example) and taken out of the decoded data. So training and test see the same hospital: one without an ECG has
none at test time either. The server's public examples stay whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from jaxtyping import Int

from medfed.core.catalog import DATASETS
from medfed.core.errors import DataError
from medfed.core.rng import numpy_rng
from medfed.data.split import roster
from medfed.datasets.decoded import Decoded
from medfed.modalities.base import Modality, Moments
from medfed.study.data import MissingSettings, PartitionSettings, SplitSettings
from medfed.study.study import Study
from medfed.tasks.base import Task, TaskSet

SERVER_SPLITS = ("public", "development", "test")
Rows = Int[np.ndarray, " _"]
"""Rows of a dataset; how many differs from task to task, so the axis has no name."""
NO_ROWS = np.zeros(0, np.int64)
Data = Mapping[str, Decoded]
"""Dataset → its decoded examples."""
Placed = dict[str, dict[str, Rows]]
"""Place → task → rows."""
Sets = dict[str, dict[str, TaskSet]]
"""Place → task → examples; a place without examples of a task lacks the task."""


@dataclass(frozen=True)
class Division:
    """The settings by which a study's data is divided; ``modalities`` may be more than the data has."""

    train: Sequence[Task]
    unseen: Sequence[Task]
    modalities: Mapping[str, Modality]
    split: SplitSettings
    partition: PartitionSettings
    seed: int
    missing: MissingSettings = field(default_factory=MissingSettings)

    @classmethod
    def of(cls, study: Study) -> Division:
        """Return the settings of ``study``."""
        tasks = (study.train_tasks, tuple(task for task in study.tasks if task.name not in study.train))
        return cls(*tasks, sampled_modalities(study), study.split, study.partition, study.seed, study.missing)

    def without_missing(self, data: Data, clients: Mapping[str, str]) -> dict[str, Decoded]:
        """Return ``data`` without the modalities that are taken away from ``clients`` (patient → client)."""
        return {name: take_away(decoded, self.missing, clients, self.seed) for name, decoded in data.items()}

    def normalised(self, data: Data, moments: Mapping[str, Moments]) -> dict[str, Decoded]:
        """Return ``data`` normalised by ``moments``."""
        return {name: decoded.normalised(self.modalities, moments) for name, decoded in data.items()}


def sampled_modalities(study: Study) -> dict[str, Modality]:
    """Return the modalities that samples of the study's datasets have, truths apart, sorted by name."""
    names = {modality for dataset in study.dataset_names for modality in DATASETS[dataset].modalities}
    return {name: study.modality(name) for name in sorted(names)}


def rosters(data: Data, tasks: Sequence[Task]) -> dict[str, pl.DataFrame]:
    """Return dataset → the roster of its tasks' examples (:func:`medfed.data.split.roster`)."""
    made: dict[str, pl.DataFrame] = {}
    for name in sorted({task.dataset for task in tasks}):
        served = [task for task in tasks if task.dataset == name]
        targets = [column for task in served for column in task.target_columns]
        made[name] = roster(data[name].index, targets, [column for task in served for column in task.stratum_columns])
    return made


def laid_out(data: Data, tasks: Sequence[Task], places: Mapping[str, str], wanted: Iterable[str]) -> Placed:
    """Return place → task → rows of the task whose patient (``places``: patient → place) is in a ``wanted`` place."""
    by_task = {task.name: rows_by_place(data[task.dataset], task, places) for task in tasks}
    return {place: {name: rows.get(place, NO_ROWS) for name, rows in by_task.items()} for place in wanted}


def server_rows(data: Data, division: Division, places: Mapping[str, str]) -> Placed:
    """Return split (public, development, test) → task → the server's rows.

    All examples of an unseen task are test examples, but for those of patients in another split. Where a split has a
    maximum, it holds that many of a task, drawn from (seed, split, task).
    """
    rows = laid_out(data, division.train, places, SERVER_SPLITS)
    elsewhere = {patient: place for patient, place in places.items() if place != "test"}
    for task in division.unseen:
        rows["test"][task.name] = rows_by_place(data[task.dataset], task, elsewhere).get(None, NO_ROWS)
    for split, most in (("public", division.split.max_public), ("test", division.split.max_test)):
        for name, given in rows[split].items():
            if most is not None and len(given) > most:
                drawn = numpy_rng(division.seed, "at most", split, name).choice(len(given), most, replace=False)
                rows[split][name] = given[np.sort(drawn)]
    return rows


def rows_by_place(decoded: Decoded, task: Task, places: Mapping[str, str]) -> dict[str | None, Rows]:
    """Return place → rows of the task whose patient is there, in order; None stands for no place at all."""
    patients, by_place = decoded.index["patient"].to_list(), dict[str | None, list[int]]()
    for row in np.flatnonzero(task.usable(decoded)).tolist():
        by_place.setdefault(places.get(patients[row]), []).append(row)
    return {place: np.array(rows, np.int64) for place, rows in by_place.items()}


def require_examples(task: Task, parts: Mapping[str, Rows], where: str | None = None) -> None:
    """Raise :class:`DataError` where the task has no row in one of the named ``parts``."""
    for part, rows in parts.items():
        if not len(rows):
            hint = "give it more data, change split.ratios, or take the task out of the study"
            raise DataError(f"task {task.name!r} has no {part} example left", where=where or task.dataset, hint=hint)


def plus_moments(
    total: Moments, modality: Modality, tasks: Sequence[Task], data: Data, rows: Mapping[str, Rows]
) -> Moments:
    """Return ``total`` and the moments of one party's ``rows`` (by task); an example of two tasks counts once."""
    tasks = [task for task in tasks if modality.name in task.modalities]
    for dataset in sorted({task.dataset for task in tasks}):
        names = [task.name for task in tasks if task.dataset == dataset]
        total = total.plus(data[dataset].moments(modality, np.unique(np.concatenate([rows[name] for name in names]))))
    return total


def whole_sets(data: Data, tasks: Sequence[Task]) -> dict[str, TaskSet]:
    """Return task → an empty set that has the labels of the whole dataset, for :func:`sets_of`."""
    return {task.name: TaskSet(task, data[task.dataset], NO_ROWS) for task in tasks}


def sets_of(whole: Mapping[str, TaskSet], rows: Mapping[str, Mapping[str, Rows]]) -> Sets:
    """Return place → task → examples; a task without rows is left out of its place."""
    return {
        place: {name: whole[name].holding(kept) for name, kept in by_task.items() if len(kept)}
        for place, by_task in rows.items()
    }


def ids_by_dataset(sets: Mapping[str, TaskSet]) -> dict[str, list[str]]:
    """Return dataset → sorted ids of the examples in ``sets``."""
    ids: dict[str, pl.Series] = {}
    for examples in sets.values():
        held, dataset = examples.data.index["example"].gather(examples.rows), examples.task.dataset
        ids[dataset] = pl.concat([ids[dataset], held]).unique() if dataset in ids else held
    return {dataset: series.sort().to_list() for dataset, series in sorted(ids.items())}


def take_away(data: Decoded, settings: MissingSettings, clients: Mapping[str, str], seed: int) -> Decoded:
    """Return a dataset without the missing modalities of ``clients`` (patient → client); others keep everything."""
    named = [name for name in data.samples if not settings.modalities or name in settings.modalities]
    if settings.share == 0 or not named or len(data.samples) < 2:
        return data
    present = {name: flags.copy() for name, flags in data.present.items()}
    everyone = sorted(set(clients.values()))
    order = numpy_rng(seed, "missing", data.name, "clients").permutation(len(everyone))
    chosen = {everyone[number] for number in order[: int(settings.share * len(everyone) + 0.5)]}
    for row, (example, patient) in enumerate(data.index.select("example", "patient").iter_rows()):
        client = clients.get(patient)
        if client is None or (settings.by == "client" and client not in chosen):
            continue
        rng = numpy_rng(seed, "missing", data.name, settings.by, client if settings.by == "client" else str(example))
        if settings.by == "example" and rng.random() >= settings.share:
            continue
        name = named[int(rng.integers(len(named)))]
        present[name][row] &= not any(flags[row] for other, flags in present.items() if other != name)
    samples = {name: values.copy() for name, values in data.samples.items()}
    for name, values in samples.items():
        values[~present[name]] = 0
    return replace(data, samples=samples, present=present)
