"""Who holds what: every task's examples by client and by server split, normalised by the clients' pooled moments.

Rows of a dataset by task and place: what cohorts and sites are laid out with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int

from medfed.core.errors import DataError
from medfed.data.missing import take_away
from medfed.data.split import assign_clients, assign_splits, partition_hash, roster
from medfed.datasets.decoded import Decoded
from medfed.modalities.base import Modality
from medfed.modalities.moments import Moments
from medfed.study.data import MissingSettings, PartitionSettings, SplitSettings
from medfed.tasks.base import Task, TaskSet

SERVER_SPLITS = ("public", "development", "test")
ELSEWHERE = "elsewhere"
"""In ``client_tests``: the test patients of sites that do not train. They meet the server's model."""


@dataclass(frozen=True)
class Cohort:
    """The study's data, divided.

    Attributes:
        clients: client → trained task → its private examples. A client without examples of a task lacks the task.
        public, development: trained task → the server's examples.
        test: any task → test examples; of an unseen task all examples of patients no other part holds.
        client_tests: client → trained task → those test examples that are dealt to the client, by the shares of the
            private ones; natural clients have their own site's, and :data:`ELSEWHERE` holds those of all other sites.
        moments: modality → the pooled moments that everything is normalised by.
        site_tests: of a federation of folders in one process, site → task → the site's own test examples.
        partition: who holds which example ids, with class counts (JSON).
    """

    clients: Mapping[str, Mapping[str, TaskSet]]
    public: Mapping[str, TaskSet]
    development: Mapping[str, TaskSet]
    test: Mapping[str, TaskSet]
    client_tests: Mapping[str, Mapping[str, TaskSet]]
    moments: Mapping[str, Moments] = field(repr=False)
    partition: Mapping[str, Any] = field(repr=False)
    site_tests: Mapping[str, Mapping[str, TaskSet]] = field(default_factory=dict)


def build_cohort(
    data: Mapping[str, Decoded],
    train: Sequence[Task],
    unseen: Sequence[Task],
    modalities: Mapping[str, Modality],
    split: SplitSettings,
    partition: PartitionSettings,
    seed: int,
    missing: MissingSettings | None = None,
) -> Cohort:
    """Split patients, spread the private ones over clients, pool the moments, normalise, and lay out every task.

    Raises:
        DataError: a trained task has no private, public or test example left.
    """
    seen = rosters(data, train)
    splits = assign_splits(seen, split, seed)
    clients = assign_clients(seen, splits, partition, seed)
    tested = assign_clients(seen, splits, partition, seed, "test")
    if missing is not None:
        data = {name: take_away(decoded, missing, {**clients, **tested}, seed) for name, decoded in data.items()}
    names, left_out = _large_enough(data, train, clients, partition.min_examples)
    private = laid_out(data, train, clients, names)
    server = laid_out(data, train, splits, SERVER_SPLITS)
    for task in train:
        parts = {"private": np.concatenate([rows[task.name] for rows in private.values()])}
        asked = [part for part in SERVER_SPLITS if part != "development" or split.ratios[2] > 0]
        require_examples(task, {**parts, **{part: server[part][task.name] for part in asked}})
    elsewhere = {patient: place for patient, place in splits.items() if place != "test"}
    for task in unseen:
        server["test"][task.name] = rows_by_place(data[task.dataset], task, elsewhere).get(None, NO_ROWS)
        require_examples(task, {"test": server["test"][task.name]})
    moments = pooled_moments(data, train, private, modalities)
    data = {name: decoded.normalised(modalities, moments) for name, decoded in data.items()}
    whole = {task.name: TaskSet(task, data[task.dataset], NO_ROWS) for task in (*train, *unseen)}

    def sets(rows: Mapping[str, Rows]) -> dict[str, TaskSet]:
        return {name: whole[name].holding(kept) for name, kept in rows.items() if len(kept)}

    held = {name: sets(rows) for name, rows in private.items()}
    tested = {patient: name if name in private else ELSEWHERE for patient, name in tested.items()}
    at = (*names, *({ELSEWHERE} & set(tested.values())))
    own_tests = {name: sets(rows) for name, rows in laid_out(data, train, tested, at).items()}
    at_server = {part: sets(rows) for part, rows in server.items()}
    record = _record(held, at_server, partition, seed)
    record |= {"client_tests": {name: ids_by_dataset(parts) for name, parts in own_tests.items()}, "left_out": left_out}
    public, development, test = (at_server[part] for part in SERVER_SPLITS)
    return Cohort(held, public, development, test, client_tests=own_tests, moments=moments, partition=record)


def pooled_moments(
    data: Mapping[str, Decoded],
    train: Sequence[Task],
    private: Mapping[str, Mapping[str, Rows]],
    modalities: Mapping[str, Modality],
) -> dict[str, Moments]:
    """Sum the clients' moments in order of client id: training data only, and no bit depends on who answers first."""
    pooled: dict[str, Moments] = {}
    for name in sorted({name for decoded in data.values() for name in decoded.samples}):
        pooled[name] = Moments.zero(modalities[name].num_channels)
        for client in sorted(private):
            for dataset in sorted({task.dataset for task in train if name in task.modalities}):
                tasks = [task.name for task in train if task.dataset == dataset and name in task.modalities]
                rows = np.unique(np.concatenate([private[client][task] for task in tasks]))
                pooled[name] = pooled[name].plus(data[dataset].moments(modalities[name], rows))
    return pooled


def _large_enough(
    data: Mapping[str, Decoded], train: Sequence[Task], clients: Mapping[str, str], least: int
) -> tuple[list[str], list[str]]:
    """Return the clients with at least ``least`` training examples over all tasks, and those with fewer."""
    sizes = dict.fromkeys(sorted(set(clients.values())), 0)
    for task in train:
        usable = task.usable(data[task.dataset])
        for patient in data[task.dataset].index["patient"].filter(usable):
            if patient in clients:
                sizes[clients[patient]] += 1
    return [name for name, size in sizes.items() if size >= least], [
        name for name, size in sizes.items() if size < least
    ]


def _record(
    held: Mapping[str, Mapping[str, TaskSet]],
    server: Mapping[str, Mapping[str, TaskSet]],
    settings: PartitionSettings,
    seed: int,
) -> dict[str, Any]:
    clients = {name: ids_by_dataset(sets) for name, sets in held.items()}
    return {
        "scheme": settings.scheme,
        "seed": seed,
        "hash": partition_hash(clients),
        "clients": clients,
        "server": {part: ids_by_dataset(sets) for part, sets in server.items()},
        "counts": {
            name: {task: examples.task.counts(examples) for task, examples in sets.items()}
            for name, sets in held.items()
        },
    }


Rows = Int[np.ndarray, " row"]
NO_ROWS = np.zeros(0, np.int64)


def rosters(data: Mapping[str, Decoded], tasks: Sequence[Task]) -> dict[str, pl.DataFrame]:
    """Return dataset → the roster of its tasks' examples (:func:`medfed.data.split.roster`)."""
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
