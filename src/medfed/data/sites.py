"""The data of one party of a federation of folders: a site, or the server.

A hospital's own process and the run in one process call these same functions, so both give the same bits. Nothing here
knows how messages travel, or what a site's policy allows.

A site divides its patients into those it trains on and those it tests on. It reports the moments of the former, and
normalises everything by the moments pooled over all sites (FedKIM §3.2 pools over clients). The server's folder is
divided into public, development and test data. Ids begin with the party's name: equal ids at two sites are two people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from medfed.core.catalog import DATASETS
from medfed.core.errors import DataError, StudyError
from medfed.core.rng import seed_of
from medfed.data import layout
from medfed.data.decode import Reading, decode_all
from medfed.data.layout import SERVER_SPLITS, Division, Rows, Sets
from medfed.data.sources import Roots, Served, served_tasks
from medfed.data.split import assign_splits
from medfed.datasets.decoded import Decoded
from medfed.federated.client import Client
from medfed.modalities.base import Moments
from medfed.study.study import Study
from medfed.tasks.base import Task, TaskSet
from medfed.twins.writing import SERVER

SITE_SPLITS = ("private", "test")
"""Parts of a site's patients: for training, and for testing."""


@dataclass(frozen=True)
class SiteData:
    """A site's own examples, not normalised; ``site`` is its name, the client's id.

    ``tasks`` are those of the study's trained tasks that it serves and has the dataset of.
    """

    site: str
    tasks: tuple[Task, ...]
    data: Mapping[str, Decoded] = field(repr=False)
    """Dataset → decoded examples, ids beginning with the site's name."""
    train: Mapping[str, Rows] = field(repr=False)
    test: Mapping[str, Rows] = field(repr=False)
    """Task → rows of its dataset; no patient is in both."""

    @property
    def num_examples(self) -> int:
        """Training examples over all tasks: the site registers with their number."""
        return sum(len(rows) for rows in self.train.values())


def load_site(study: Study, site: str, roots: Roots, reading: Reading, tasks: Served = None) -> SiteData:
    """Read what the site holds, and see that it has enough to take part.

    A site with fewer training examples than the study's ``partition.min_examples`` takes no part. Of the trained tasks
    it serves those in ``tasks``, or all; ``roots`` are those of :func:`medfed.data.sources.find_site`. Raises DataError
    if a file is bad, or the site has too few training examples, StudyError if no task may be served.
    """
    data, least = read_site(study, site, roots, reading, tasks), study.partition.min_examples
    if data.num_examples < least:
        what = f"{data.num_examples} training examples, at least {least} are needed to take part"
        hint = "give it more data of the study's tasks, or leave the site out"
        raise DataError(what, where=f"site {site!r}", hint=hint)
    return data


def read_site(study: Study, site: str, roots: Roots, reading: Reading, tasks: Served = None) -> SiteData:
    """Decode what the site holds and divide its patients by the ratios of private and test; see :func:`load_site`.

    Patients are dealt by (seed, "site", site). Raises DataError if a file is bad, StudyError if no task may be served.
    """
    served, division = served_tasks(study, site, tasks), Division.of(study)
    wanted = {task.dataset for task in served}
    held = {name: root for name, root in sorted(roots.items()) if name in wanted}
    data = _named_for(site, decode_all(study, held, reading, f"{site}: decode"))
    served = tuple(task for task in served if task.dataset in data)
    places = assign_splits(layout.rosters(data, served), study.split, seed_of(study.seed, "site", site), SITE_SPLITS)
    data = division.without_missing(data, dict.fromkeys(places, site))
    return SiteData(site, served, data, *layout.laid_out(data, served, places, SITE_SPLITS).values())


def class_counts(site: SiteData) -> dict[str, dict[str, int]]:
    """Return task → class → the site's training examples; a task without any is left out."""
    return {
        task.name: task.counts(TaskSet(task, site.data[task.dataset], site.train[task.name]))
        for task in site.tasks
        if len(site.train[task.name])
    }


def moments_at(study: Study, site: SiteData) -> dict[str, Moments]:
    """Return the moments of the site's training rows by modality of the study; those of one it lacks are zero."""
    return {
        name: layout.plus_moments(Moments.zero(modality.num_channels), modality, site.tasks, site.data, site.train)
        for name, modality in layout.sampled_modalities(study).items()
    }


def pool(moments: Mapping[str, Mapping[str, Moments]]) -> dict[str, Moments]:
    """Sum the sites' moments (site → modality → moments) in order of the sites' names.

    Raises DataError if a site's modalities or channels are not those of the others.
    """
    if not moments:
        raise DataError("no site has reported its moments", where="federation", hint="wait for the sites to join")
    first, *others = sorted(moments)
    pooled = dict(moments[first])
    for site in others:
        given = moments[site]
        for name in sorted(given.keys() | pooled.keys()):
            if name not in given or name not in pooled or given[name].count.shape != pooled[name].count.shape:
                what = f"the moments of the modality {name!r} are not like the other sites'"
                hint = "all sites must run the same study with the same version of medfed"
                raise DataError(what, where=f"site {site!r}", hint=hint)
        pooled = {name: total.plus(given[name]) for name, total in pooled.items()}
    return pooled


def moments_json(moments: Mapping[str, Moments]) -> dict[str, dict[str, list[float]]]:
    """Return ``moments`` as JSON values; :func:`moments_of` is the inverse, bit for bit."""
    return {name: value.as_json() for name, value in moments.items()}


def moments_of(values: Mapping[str, object]) -> dict[str, Moments]:
    """Read what :func:`moments_json` returned. Raises DataError, which names the modality, if a value is not that."""
    return {name: Moments.from_json(name, value) for name, value in values.items()}


def site_client(
    study: Study, site: SiteData, pooled: Mapping[str, Moments], public: Mapping[str, TaskSet] | None = None
) -> tuple[Client, dict[str, TaskSet]]:
    """Return the site as a client, and its own test examples by task.

    ``pooled`` are the moments of all sites (:func:`pool`), ``public`` the server's public examples
    (:func:`public_sets`) for an algorithm that uses them. Raises DataError if the site has no training example, or
    ``pooled`` lacks a modality, StudyError if the algorithm needs public examples and none are given.
    """
    where = f"site {site.site!r}"
    if study.algorithm.uses_public and not public:
        what = f"the algorithm {study.algorithm.name!r} needs the server's public data at every site"
        raise StudyError(what, where=where, hint="copy the server's folder to the site and name the copy")
    if lacking := sorted(layout.sampled_modalities(study).keys() - pooled.keys()):
        raise DataError(f"no pooled moments of {lacking[0]!r}", where=where, hint="ask the server")
    train, tests = task_sets(study, site, pooled)
    return Client(site.site, train, public if study.algorithm.uses_public else {}), tests


def task_sets(
    study: Study, site: SiteData, pooled: Mapping[str, Moments]
) -> tuple[dict[str, TaskSet], dict[str, TaskSet]]:
    """Return the site's training and test examples by task, normalised; a task without examples is left out."""
    whole = layout.whole_sets(Division.of(study).normalised(site.data, pooled), site.tasks)
    sets = layout.sets_of(whole, {"train": site.train, "test": site.test})
    return sets["train"], sets["test"]


def public_sets(study: Study, public_root: Path, pooled: Mapping[str, Moments], reading: Reading) -> dict[str, TaskSet]:
    """Return the server's public examples by trained task, from a site's copy of the server's folder.

    Raises DataError if a dataset of a trained task is not there, or a file is bad.
    """
    names = sorted({task.dataset for task in study.train_tasks})
    data = decode_all(study, {name: DATASETS[name].locate(public_root) for name in names}, reading, "public: decode")
    return server_sets(data, replace(Division.of(study), unseen=()), pooled)["public"]


def server_sets(data: Mapping[str, Decoded], division: Division, moments: Mapping[str, Moments]) -> Sets:
    """Return split (public, development, test) → task → the server's examples, normalised by the sites' ``moments``.

    Raises DataError if a task has no example left in a part it needs.
    """
    data = _named_for(SERVER, data)
    places = assign_splits(layout.rosters(data, division.train), division.split, division.seed, SERVER_SPLITS)
    data = division.without_missing(data, {patient: SERVER for patient, place in places.items() if place == "test"})
    rows = layout.server_rows(data, division, places)
    needed = [part for part, share in zip(SERVER_SPLITS, division.split.ratios[1:], strict=True) if share]
    tasks = (*division.train, *division.unseen)
    for task in tasks:
        parts = {part: rows[part][task.name] for part in needed if task.name in rows[part]}
        layout.require_examples(task, parts, f"site {SERVER!r}, {task.dataset}")
    return layout.sets_of(layout.whole_sets(division.normalised(data, moments), tasks), rows)


def _named_for(party: str, data: Mapping[str, Decoded]) -> dict[str, Decoded]:
    """Return ``data`` with the party's name before every example's and patient's id."""
    columns = [(pl.lit(f"{party}/") + pl.col(name).cast(pl.Utf8)).alias(name) for name in ("example", "patient")]
    return {name: replace(decoded, index=decoded.index.with_columns(columns)) for name, decoded in data.items()}
