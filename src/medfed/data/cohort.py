"""The study's data by client and by server split, normalised by the clients' pooled moments.

Patients come from one pool, dealt to clients by the partition, or each site has a folder of its own. A server on a
network has its folder and the pooled moments, no more; in one process the sites' examples are there as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from medfed.core.errors import DataError
from medfed.data import layout
from medfed.data.decode import Reading
from medfed.data.layout import SERVER_SPLITS, Data, Division, Placed, Sets
from medfed.data.sites import SiteData, moments_at, pool, read_site, server_sets, task_sets
from medfed.data.sources import Sources
from medfed.data.split import assign_clients, assign_splits, partition_hash
from medfed.modalities.base import Moments
from medfed.study.study import Study
from medfed.tasks.base import TaskSet
from medfed.twins.writing import SERVER

ELSEWHERE = "elsewhere"
"""In ``client_tests``: the test patients of sites that do not train. They meet the server's model."""
ALL_TASKS = "all tasks"
"""In the record of who holds what: a site's examples where it does not report them by task."""


@dataclass(frozen=True)
class Cohort:
    """The study's data, divided."""

    clients: Mapping[str, Mapping[str, TaskSet]]
    """Client → trained task → its private examples. A client without examples of a task lacks the task."""
    public: Mapping[str, TaskSet]
    development: Mapping[str, TaskSet]
    test: Mapping[str, TaskSet]
    """Any task → test examples; of an unseen task all examples of patients no other part holds."""
    client_tests: Mapping[str, Mapping[str, TaskSet]]
    """Client → trained task → the test examples dealt to it, by the shares of the private ones. Natural clients have
    their site's, and :data:`ELSEWHERE` holds those of all other sites."""
    moments: Mapping[str, Moments] = field(repr=False)
    """Modality → the pooled moments that everything is normalised by."""
    partition: Mapping[str, Any] = field(repr=False)
    """The holders of the example ids, with class counts (JSON)."""
    site_tests: Mapping[str, Mapping[str, TaskSet]] = field(default_factory=dict)
    """Of a federation of folders in one process, site → task → the site's own test examples."""


def cohort_of(study: Study, sources: Sources, data: Data, reading: Reading) -> Cohort:
    """Divide the decoded ``data`` over clients and server; of a federation of folders, read the sites' too.

    Raises DataError if a task, or a site, has no example left.
    """
    if study.partition.scheme != "sites":
        return build_cohort(data, Division.of(study))
    present = [read_site(study, name, roots, reading) for name, roots in sorted(sources.sites.items())]
    sites = [site for site in present if site.num_examples >= study.partition.min_examples]
    if not sites:
        what = f"every site has fewer than partition.min_examples = {study.partition.min_examples} training examples"
        hint = "give the sites more data of the study's tasks, or lower partition.min_examples"
        raise DataError(what, where=", ".join(site.site for site in present), hint=hint)
    cohort = server_cohort(study, data, pool({site.site: moments_at(study, site) for site in sites}))
    return _with_sites(cohort, study, sites, left_out=sorted(sources.sites.keys() - {site.site for site in sites}))


def build_cohort(data: Data, division: Division) -> Cohort:
    """Split the pool of patients, deal the private ones to clients, pool the moments, and normalise.

    Raises DataError if a trained task has no private, public or test example left.
    """
    train, seed = division.train, division.seed
    patients = layout.rosters(data, train)
    splits = assign_splits(patients, division.split, seed)
    clients, tested = (assign_clients(patients, splits, division.partition, seed, part) for part in ("private", "test"))
    data = division.without_missing(data, {**clients, **tested})
    held = layout.laid_out(data, train, clients, sorted(set(clients.values())))
    left_out = [name for name, rows in held.items() if sum(map(len, rows.values())) < division.partition.min_examples]
    private = {name: rows for name, rows in held.items() if name not in left_out}
    server = layout.server_rows(data, division, splits)
    _require_all(division, private, server)
    moments = _pooled_moments(data, division, private)
    data = division.normalised(data, moments)
    tested = {patient: name if name in private else ELSEWHERE for patient, name in tested.items()}
    tests = layout.laid_out(data, train, tested, (*private, *({ELSEWHERE} & set(tested.values()))))
    whole = layout.whole_sets(data, (*train, *division.unseen))
    sets, at_server, client_tests = (layout.sets_of(whole, rows) for rows in (private, server, tests))
    record = {
        **_record(division.partition.scheme, seed, sets, at_server),
        "counts": _by_client(sets, lambda examples: examples.task.counts(examples)),
        "client_tests": {client: layout.ids_by_dataset(by_task) for client, by_task in client_tests.items()},
        "left_out": left_out,
    }
    public, development, test = (at_server[part] for part in SERVER_SPLITS)
    return Cohort(sets, public, development, test, client_tests, moments, record)


def server_cohort(study: Study, data: Data, moments: Mapping[str, Moments]) -> Cohort:
    """Return the cohort of a federation of folders at its server: the server's ``data``, and the pooled ``moments``.

    Raises DataError if a task has no example left.
    """
    server = server_sets(data, Division.of(study), moments)
    record = _site_record(study.seed, {}, {}, server, [])
    trained = {name: examples for name, examples in server["test"].items() if name in study.train}
    public, development, test = (server[part] for part in SERVER_SPLITS)
    return Cohort({}, public, development, test, {SERVER: trained}, moments, record)


def with_reports(
    cohort: Cohort, num_examples: Mapping[str, int], counts: Mapping[str, Mapping[str, Mapping[str, int]] | None]
) -> Cohort:
    """Return the server's ``cohort`` with the reports of sites elsewhere on record.

    ``num_examples`` are training examples of a site over all tasks. ``counts`` are site → task → class → examples, or
    None where the site's policy keeps them.
    """
    known = {site: {task: dict(of) for task, of in tasks.items()} for site, tasks in counts.items() if tasks}
    unknown = {site: {ALL_TASKS: number} for site, number in sorted(num_examples.items()) if site not in known}
    record = {**cohort.partition, "counts": dict(sorted(known.items())), "num_examples": unknown}
    return replace(cohort, partition=record)


def _with_sites(cohort: Cohort, study: Study, sites: Sequence[SiteData], left_out: list[str]) -> Cohort:
    """Return the server's ``cohort`` with the examples of ``sites``; the record names the sites ``left_out``."""
    sets = {site.site: task_sets(study, site, cohort.moments) for site in sites}
    train, tests = ({name: parts[number] for name, parts in sets.items()} for number in (0, 1))
    record = _site_record(study.seed, train, tests, {part: getattr(cohort, part) for part in SERVER_SPLITS}, left_out)
    record["skipped"] = {site.site: {name: len(held.skipped) for name, held in site.data.items()} for site in sites}
    return replace(cohort, clients=train, site_tests=tests, partition=record)


def _require_all(division: Division, private: Placed, server: Placed) -> None:
    needed = [part for part in SERVER_SPLITS if part != "development" or division.split.ratios[2] > 0]
    for task in division.train:
        held = {"private": np.concatenate([rows[task.name] for rows in private.values()])}
        layout.require_examples(task, {**held, **{part: server[part][task.name] for part in needed}})
    for task in division.unseen:
        layout.require_examples(task, {"test": server["test"][task.name]})


def _pooled_moments(data: Data, division: Division, private: Placed) -> dict[str, Moments]:
    """Sum the clients' moments in order of client id: training data only, and no bit depends on who answers first."""
    pooled: dict[str, Moments] = {}
    for name in sorted({name for decoded in data.values() for name in decoded.samples}):
        modality = division.modalities[name]
        pooled[name] = Moments.zero(modality.num_channels)
        for client in sorted(private):
            pooled[name] = layout.plus_moments(pooled[name], modality, division.train, data, private[client])
    return pooled


def _record(scheme: str, seed: int, clients: Sets, server: Sets) -> dict[str, Any]:
    """Return who holds which examples."""
    held = {client: layout.ids_by_dataset(sets) for client, sets in clients.items()}
    at_server = {part: layout.ids_by_dataset(sets) for part, sets in server.items()}
    return {"scheme": scheme, "seed": seed, "hash": partition_hash(held), "clients": held, "server": at_server}


def _by_client(sets: Sets, of: Callable[[TaskSet], Any]) -> dict[str, dict[str, Any]]:
    """Return client → task → a value of its examples."""
    return {client: {task: of(examples) for task, examples in tasks.items()} for client, tasks in sets.items()}


def _site_record(seed: int, clients: Sets, tests: Sets, server: Sets, left_out: list[str]) -> dict[str, Any]:
    """Return who holds what; the number of a site's examples of a class is for the site to report."""
    return {
        **_record("sites", seed, clients, server),
        "counts": {},
        "num_examples": _by_client(clients, len),
        "site_tests": {client: layout.ids_by_dataset(sets) for client, sets in tests.items()},
        "left_out": left_out,
    }
