"""A site of a federation of folders: its own patients, divided by itself, seen by nobody else.

What is here serves a hospital's own process and the run in one process alike, so both give the same bits. A site
divides its patients into those it trains on and those it tests on, tells the moments of the former, and normalises
everything by the moments pooled over all sites (FedKIM §3.2 pools over clients). The server's folder is divided into
public, development and test data. Ids begin with the site's name: equal ids at two sites are two people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from jaxtyping import Int

from medfed.datasets.decode import Decoded
from medfed.datasets.missing import MissingSettings, take_away
from medfed.datasets.split import SplitSettings, assign_splits
from medfed.errors import DataError
from medfed.modalities.base import Modality
from medfed.modalities.moments import Moments
from medfed.rng import seed_of
from medfed.tasks.base import Task, TaskSet
from medfed.tasks.rows import laid_out, rosters

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
