"""The cohort of a federation of folders: the server's own data, and the sites' where they are in this process.

On a network the server has its folder and the pooled moments, no more; in one process the sites' examples stand beside.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from medfed.datasets.decode import Decoded
from medfed.datasets.folders import SERVER
from medfed.datasets.missing import MissingSettings, take_away
from medfed.datasets.split import SplitSettings, assign_splits, partition_hash
from medfed.modalities.base import Modality
from medfed.modalities.moments import Moments
from medfed.tasks.base import Task, TaskSet
from medfed.tasks.cohort import SERVER_SPLITS, Cohort
from medfed.tasks.rows import NO_ROWS, ids_by_dataset, laid_out, require_examples, rosters, rows_by_place
from medfed.tasks.sites import SiteData, named_for, task_sets

ALL_TASKS = "all tasks"
"""In the record of who holds what: a site's examples where it does not tell them by task."""


def server_sets(
    data: Mapping[str, Decoded],
    train: Sequence[Task],
    unseen: Sequence[Task],
    modalities: Mapping[str, Modality],
    split: SplitSettings,
    seed: int,
    moments: Mapping[str, Moments],
    missing: MissingSettings | None = None,
) -> dict[str, dict[str, TaskSet]]:
    """Return split (public, development, test) → task → the server's examples, normalised by the sites' moments.

    Every example of an unseen task is a test example, but for those of public and development patients.

    Raises:
        DataError: a task has no example left in a part it needs.
    """
    data = {name: named_for(SERVER, decoded) for name, decoded in data.items()}
    places = assign_splits(rosters(data, train), split, seed, SERVER_SPLITS)
    if missing is not None:
        tested = {patient: SERVER for patient, place in places.items() if place == "test"}
        data = {name: take_away(decoded, missing, tested, seed) for name, decoded in data.items()}
    rows = laid_out(data, train, places, SERVER_SPLITS)
    elsewhere = {patient: place for patient, place in places.items() if place != "test"}
    rows["test"] |= {
        task.name: rows_by_place(data[task.dataset], task, elsewhere).get(None, NO_ROWS) for task in unseen
    }
    asked = [part for part, share in zip(SERVER_SPLITS, split.ratios[1:], strict=True) if share]
    for task in (*train, *unseen):
        needed = {part: rows[part][task.name] for part in asked if task.name in rows[part]}
        require_examples(task, needed, f"site {SERVER!r}, {task.dataset}")
    normal = {name: decoded.normalised(modalities, moments) for name, decoded in data.items()}
    tasks = {task.name: task for task in (*train, *unseen)}
    return {
        part: {name: TaskSet(tasks[name], normal[tasks[name].dataset], kept) for name, kept in own.items() if len(kept)}
        for part, own in rows.items()
    }


def cohort_of_server(
    server: Mapping[str, Mapping[str, TaskSet]], train: Collection[str], moments: Mapping[str, Moments], seed: int
) -> Cohort:
    """Return the cohort of a server whose sites are elsewhere: no client's data, the global model tested here."""
    record = _record({}, {}, server, seed, [])
    public, development, test = (server[part] for part in SERVER_SPLITS)
    trained = {name: examples for name, examples in test.items() if name in train}
    return Cohort({}, public, development, test, client_tests={SERVER: trained}, moments=moments, partition=record)


def with_sites(
    cohort: Cohort, sites: Sequence[SiteData], modalities: Mapping[str, Modality], seed: int, left_out: list[str]
) -> Cohort:
    """Return ``cohort`` with the sites' examples beside; the record names the sites that were ``left_out``."""
    sets = {site.site: task_sets(site, modalities, cohort.moments) for site in sites}
    train, tests = ({name: parts[number] for name, parts in sets.items()} for number in (0, 1))
    server = {part: getattr(cohort, part) for part in SERVER_SPLITS}
    record = _record(train, tests, server, seed, left_out)
    record["skipped"] = {site.site: {name: len(own.skipped) for name, own in site.data.items()} for site in sites}
    return Cohort(
        train,
        cohort.public,
        cohort.development,
        cohort.test,
        client_tests=cohort.client_tests,
        moments=cohort.moments,
        partition=record,
        site_tests=tests,
    )


def with_told(
    cohort: Cohort,
    num_examples: Mapping[str, int],
    counts: Mapping[str, Mapping[str, Mapping[str, int]] | None],
) -> Cohort:
    """Return the server's ``cohort`` with what sites elsewhere told of themselves on record.

    Args:
        cohort: of the server.
        num_examples: site → training examples over all tasks.
        counts: site → task → class → examples, or None where the site's policy keeps them.
    """
    told = {site: {task: dict(by_class) for task, by_class in own.items()} for site, own in counts.items() if own}
    untold = {site: {ALL_TASKS: number} for site, number in sorted(num_examples.items()) if site not in told}
    return replace(cohort, partition={**cohort.partition, "counts": dict(sorted(told.items())), "num_examples": untold})


def _record(
    clients: Mapping[str, Mapping[str, TaskSet]],
    tests: Mapping[str, Mapping[str, TaskSet]],
    server: Mapping[str, Mapping[str, TaskSet]],
    seed: int,
    left_out: list[str],
) -> dict[str, Any]:
    """Return who holds what; how many examples of a class a site has is for the site to tell, and not told here."""
    held = {name: ids_by_dataset(sets) for name, sets in clients.items()}
    return {
        "scheme": "sites",
        "seed": seed,
        "hash": partition_hash(held),
        "clients": held,
        "server": {part: ids_by_dataset(sets) for part, sets in server.items()},
        "counts": {},
        "num_examples": {
            name: {task: len(examples) for task, examples in sets.items()} for name, sets in clients.items()
        },
        "site_tests": {name: ids_by_dataset(sets) for name, sets in tests.items()},
        "left_out": left_out,
    }
