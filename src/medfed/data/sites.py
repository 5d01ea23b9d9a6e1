"""A site of a federation of folders: its own patients, divided by itself, seen by nobody else.

What is here serves a hospital's own process and the run in one process alike, so both give the same bits. A site
divides its patients into those it trains on and those it tests on, tells the moments of the former, and normalises
everything by the moments pooled over all sites (FedKIM §3.2 pools over clients). The server's folder is divided into
public, development and test data. Ids begin with the site's name: equal ids at two sites are two people.

The cohort of a federation of folders: the server's own data, and the sites' where they are in this process.

On a network the server has its folder and the pooled moments, no more; in one process the sites' examples stand beside.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int

from medfed.core.errors import DataError
from medfed.core.rng import seed_of
from medfed.data.cohort import (
    NO_ROWS,
    SERVER_SPLITS,
    Cohort,
    ids_by_dataset,
    laid_out,
    require_examples,
    rosters,
    rows_by_place,
)
from medfed.data.missing import take_away
from medfed.data.sources import SERVER
from medfed.data.split import assign_splits, partition_hash
from medfed.datasets.decoded import Decoded
from medfed.modalities.base import Modality
from medfed.modalities.moments import Moments
from medfed.study.data import MissingSettings, SplitSettings
from medfed.tasks.base import Task, TaskSet

SITE_SPLITS = ("private", "test")
"""What a site divides its patients into: to train on, to test on."""


@dataclass(frozen=True)
class SiteData:
    """A site's own examples, not normalised.

    Attributes:
        site: its name, the client's id.
        tasks: those of the study's trained tasks that it serves and has the dataset of.
        data: dataset → decoded examples, ids beginning with the site's name.
        train, test: task → rows of its dataset; no patient is in both.
    """

    site: str
    tasks: tuple[Task, ...]
    data: Mapping[str, Decoded] = field(repr=False)
    train: Mapping[str, Int[np.ndarray, " trained"]] = field(repr=False)
    test: Mapping[str, Int[np.ndarray, " tested"]] = field(repr=False)

    @property
    def num_examples(self) -> int:
        """Training examples over all tasks: what the site registers with."""
        return sum(len(rows) for rows in self.train.values())


def divide_site(
    site: str,
    data: Mapping[str, Decoded],
    tasks: Sequence[Task],
    split: SplitSettings,
    seed: int,
    missing: MissingSettings | None = None,
) -> SiteData:
    """Divide a site's patients into training and test, by ``split``'s shares of private and test.

    Args:
        site: the site's name.
        data: dataset → what the site holds, as decoded.
        tasks: the study's trained tasks; those whose dataset is not in ``data`` are passed over.
        split: ratios, and whether official test patients stay such.
        seed: the run's seed; patients are dealt by (seed, "site", site).
        missing: modalities to take away on purpose.
    """
    served = tuple(task for task in tasks if task.dataset in data)
    data = {name: named_for(site, data[name]) for name in sorted({task.dataset for task in served})}
    places = assign_splits(rosters(data, served), split, seed_of(seed, "site", site), SITE_SPLITS)
    if missing is not None:
        own = dict.fromkeys(places, site)
        data = {name: take_away(decoded, missing, own, seed) for name, decoded in data.items()}
    parts = laid_out(data, served, places, SITE_SPLITS)
    return SiteData(site, served, data, *parts.values())


def class_counts(site: SiteData) -> dict[str, dict[str, int]]:
    """Return task → class → the site's training examples; a task without any is left out."""
    return {
        task.name: task.counts(TaskSet(task, site.data[task.dataset], site.train[task.name]))
        for task in site.tasks
        if len(site.train[task.name])
    }


def site_moments(site: SiteData, modalities: Mapping[str, Modality]) -> dict[str, Moments]:
    """Return the moments of the site's training rows by modality; those of a modality it lacks are zero.

    Args:
        site: the site.
        modalities: those of the study that samples have.
    """
    found: dict[str, Moments] = {}
    for name, modality in sorted(modalities.items()):
        found[name] = Moments.zero(modality.num_channels)
        for dataset in sorted(site.data):
            tasks = [task.name for task in site.tasks if task.dataset == dataset and name in task.modalities]
            if tasks:
                rows = np.unique(np.concatenate([site.train[task] for task in tasks]))
                found[name] = found[name].plus(site.data[dataset].moments(modality, rows))
    return found


def pool(moments: Mapping[str, Mapping[str, Moments]]) -> dict[str, Moments]:
    """Sum the sites' moments (site → modality → moments) in order of the sites' names.

    Raises:
        DataError: a site's modalities or channels are not those of the others.
    """
    if not moments:
        raise DataError("no site has told its moments", where="federation", hint="wait for the sites to join")
    first, *others = sorted(moments)
    pooled = dict(moments[first])
    for site in others:
        _require_alike(site, moments[site], pooled)
        pooled = {name: total.plus(moments[site][name]) for name, total in pooled.items()}
    return pooled


def moments_json(moments: Mapping[str, Moments]) -> dict[str, dict[str, list[float]]]:
    """Return ``moments`` as JSON values; :func:`moments_of` is the inverse, bit for bit."""
    return {name: value.as_json() for name, value in moments.items()}


def moments_of(values: Mapping[str, object]) -> dict[str, Moments]:
    """Read what :func:`moments_json` returned.

    Raises:
        DataError: it is not that; the message names the modality.
    """
    return {name: Moments.from_json(name, value) for name, value in values.items()}


def task_sets(
    site: SiteData, modalities: Mapping[str, Modality], pooled: Mapping[str, Moments]
) -> tuple[dict[str, TaskSet], dict[str, TaskSet]]:
    """Return the site's training and test examples by task, normalised; a task without examples is left out."""
    data = {name: decoded.normalised(modalities, pooled) for name, decoded in site.data.items()}
    train, test = (
        {task.name: TaskSet(task, data[task.dataset], rows[task.name]) for task in site.tasks if len(rows[task.name])}
        for rows in (site.train, site.test)
    )
    return train, test


def named_for(site: str, data: Decoded) -> Decoded:
    """Return ``data`` with the site's name before every example's and patient's id."""
    prefix = pl.lit(f"{site}/")
    columns = [(prefix + pl.col(name).cast(pl.Utf8)).alias(name) for name in ("example", "patient")]
    return replace(data, index=data.index.with_columns(columns))


def _require_alike(site: str, given: Mapping[str, Moments], others: Mapping[str, Moments]) -> None:
    for name in sorted(given.keys() | others.keys()):
        if name not in given or name not in others or given[name].count.shape != others[name].count.shape:
            raise DataError(
                f"the moments of the modality {name!r} are not like the other sites'",
                where=f"site {site!r}",
                hint="all sites must run the same study with the same version of medfed",
            )


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
