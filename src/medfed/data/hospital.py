"""One hospital and its folder: find, decode and divide its data, compute moments, become a client.

The run in one process and a hospital's own process call these same functions. So a federation over a network gives the
bits that the run on one machine gives. Nothing here knows how messages travel, or what a site's policy allows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from medfed.core.catalog import DATASETS
from medfed.core.errors import DataError, StudyError
from medfed.core.progress import Reporter
from medfed.data.cache import DecodedCache
from medfed.data.decode import decode
from medfed.data.sites import SiteData, divide_site, server_sets, site_moments, task_sets
from medfed.data.sources import locate_held
from medfed.datasets.decoded import Decoded
from medfed.federated.client import Client
from medfed.modalities.base import Modality
from medfed.modalities.moments import Moments
from medfed.study.study import Study
from medfed.tasks.base import Task, TaskSet


def find_site(study: Study, site: str, folder: Path, tasks: Collection[str] | None = None) -> dict[str, Path]:
    """Return the roots of the trained tasks' datasets that the site's folder holds.

    Args:
        study: the study.
        site: the site's name, for messages.
        folder: holds the site's datasets in native layout.
        tasks: those the site may serve; None serves every trained one.

    Raises:
        DataError: the folder is absent or empty, or holds no dataset of the tasks. StudyError: no task may be served.
    """
    names = sorted({task.dataset for task in served_tasks(study, site, tasks)})
    return locate_held(site, [DATASETS[name] for name in names], folder)


@dataclass(frozen=True)
class Reading:
    """How data is read.

    Attributes:
        reporter: is given lines on the progress.
        skip_bad: leave unreadable examples out.
        cache: where decoded arrays are kept; None keeps none.
    """

    reporter: Reporter
    skip_bad: bool = False
    cache: DecodedCache | None = None


def load_site(
    study: Study, site: str, roots: Mapping[str, Path], reading: Reading, tasks: Collection[str] | None = None
) -> SiteData:
    """Decode what the site holds, divide its patients, and see that it has enough to take part.

    Args:
        study: the study; its ``partition.min_examples`` are the training examples without which a site takes no part.
        site: the site's name, the client's id.
        roots: dataset → its root at the site (:func:`find_site`).
        reading: how the data is read.
        tasks: those the site may serve; None serves every trained one.

    Raises:
        DataError: a file is bad, or the site has too few training examples. StudyError: no task may be served.
    """
    data, least = read_site(study, site, roots, reading, tasks), study.partition.min_examples
    if data.num_examples < max(1, least):
        raise DataError(
            f"{data.num_examples} training examples, at least {max(1, least)} are needed to take part",
            where=f"site {site!r}",
            hint="give it more data of the study's tasks, or leave the site out",
        )
    return data


def read_site(
    study: Study, site: str, roots: Mapping[str, Path], reading: Reading, tasks: Collection[str] | None = None
) -> SiteData:
    """Decode what the site holds and divide its patients into training and test, however few; see :func:`load_site`.

    Raises:
        DataError: a file is bad. StudyError: no task may be served.
    """
    served = served_tasks(study, site, tasks)
    wanted = {task.dataset for task in served}
    held = {name: root for name, root in sorted(roots.items()) if name in wanted}
    data = decode_at(study, held, reading, f"{site}: decode")
    return divide_site(site, data, served, study.split, study.seed, study.missing)


def moments_at(study: Study, site: SiteData) -> dict[str, Moments]:
    """Return the moments of the site's training rows, for every modality of the study's samples."""
    return site_moments(site, sampled_modalities(study))


def site_client(
    study: Study, site: SiteData, pooled: Mapping[str, Moments], public: Mapping[str, TaskSet] | None = None
) -> tuple[Client, dict[str, TaskSet]]:
    """Return the site as a client, and its own test examples by task.

    Args:
        study: the study.
        site: what :func:`load_site` returned.
        pooled: moments pooled over all sites (:func:`medfed.data.sites.pool`).
        public: the server's public examples (:func:`public_sets`), where the algorithm uses them.

    Raises:
        DataError: the site has no training example, or ``pooled`` lacks a modality.
        StudyError: the algorithm needs public examples and none are given.
    """
    if study.algorithm.uses_public and not public:
        raise StudyError(
            f"the algorithm {study.algorithm.label!r} needs the server's public data at every site",
            where=f"site {site.site!r}",
            hint="copy the server's folder to the site and name the copy",
        )
    modalities = sampled_modalities(study)
    if lacking := sorted(modalities.keys() - pooled.keys()):
        raise DataError(f"no pooled moments of {lacking[0]!r}", where=f"site {site.site!r}", hint="ask the server")
    train, tests = task_sets(site, modalities, pooled)
    return Client(site.site, train, public if study.algorithm.uses_public else {}), tests


def public_sets(study: Study, public_root: Path, pooled: Mapping[str, Moments], reading: Reading) -> dict[str, TaskSet]:
    """Return the server's public examples by trained task, from a site's copy of the server's folder.

    Raises:
        DataError: a dataset of a trained task is not there, or a file is bad.
    """
    names = sorted({task.dataset for task in study.train_tasks})
    data = decode_at(study, {name: DATASETS[name].locate(public_root) for name in names}, reading, "public: decode")
    modalities = sampled_modalities(study)
    return server_sets(data, study.train_tasks, (), modalities, study.split, study.seed, pooled)["public"]


def served_tasks(study: Study, site: str, tasks: Collection[str] | None) -> tuple[Task, ...]:
    """Return those of the study's trained tasks that are in ``tasks``; None means all.

    Raises:
        StudyError: there are none.
    """
    served = tuple(task for task in study.train_tasks if tasks is None or task.name in tasks)
    if not served:
        raise StudyError(
            f"none of the study's tasks ({', '.join(study.train)}) may be served here",
            where=f"site {site!r}",
            hint="allow one of them at the site, or leave the site out of this study",
        )
    return served


def sampled_modalities(study: Study) -> dict[str, Modality]:
    """Return the modalities that samples of the study's datasets have, truths apart, sorted by name."""
    names = {modality for dataset in study.dataset_names for modality in DATASETS[dataset].modalities}
    return {name: study.modality(name) for name in sorted(names)}


def decode_at(study: Study, roots: Mapping[str, Path], reading: Reading, title: str = "decode") -> dict[str, Decoded]:
    """Decode the datasets at ``roots``; files are opened here, so a bad one stops the run before anything is trained.

    Unchanged files are taken from the cache.

    Raises:
        DataError: a file is bad.
    """
    modalities = {name: study.modality(name) for name in study.modality_names}
    reporter, skip_bad, cache = reading.reporter, reading.skip_bad, reading.cache
    data = {}
    for name, root in roots.items():
        with reporter.phase(f"{title} {name}") as advance:
            data[name] = decode(DATASETS[name], root, modalities, skip_bad=skip_bad, progress=advance, cache=cache)
        if skipped := len(data[name].skipped):
            reporter.say(f"  left out {skipped} unreadable example(s) of {name}; the report lists them")
    return data
