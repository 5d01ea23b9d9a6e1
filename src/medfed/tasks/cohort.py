"""Who holds what: every task's examples by client and by server split, normalised by the clients' pooled moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medfed.datasets.decode import Decoded
from medfed.datasets.missing import MissingSettings, take_away
from medfed.datasets.split import (
    PartitionSettings,
    SplitSettings,
    assign_clients,
    assign_splits,
    partition_hash,
)
from medfed.modalities.base import Modality
from medfed.modalities.moments import Moments
from medfed.tasks.base import Task, TaskSet
from medfed.tasks.rows import NO_ROWS, Rows, ids_by_dataset, laid_out, require_examples, rosters, rows_by_place

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
