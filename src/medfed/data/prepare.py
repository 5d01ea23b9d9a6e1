"""Get a study's data ready: find or write it, index it, decode it, divide it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medfed.core.catalog import DATASETS
from medfed.core.errors import DataError, StudyError
from medfed.core.progress import Reporter
from medfed.data.cache import DecodedCache
from medfed.data.cohort import Cohort, build_cohort
from medfed.data.hospital import Reading, decode_at, moments_at, read_site, sampled_modalities
from medfed.data.sites import cohort_of_server, pool, server_sets, with_sites
from medfed.data.sources import (
    SERVER,
    check_simulators,
    checksum,
    checksums,
    locate_all,
    locate_held,
    site_folders,
    twin_place,
    twin_specs,
    twins,
    write_missing,
)
from medfed.datasets.base import Dataset, write_twin
from medfed.datasets.decoded import Decoded
from medfed.modalities.moments import Moments
from medfed.study.data import TwinSpec
from medfed.study.study import Study
from medfed.tasks.base import Task


@dataclass(frozen=True)
class Sources:
    """Where each dataset of a study lies, and the checksum of what lies there.

    Attributes:
        roots: dataset → root; of a federation of folders the server's.
        checksums: dataset → checksum; of a federation of folders that of the server's and the sites' together.
        sites: of a federation of folders, site → dataset → root, where the sites' data is on this machine.
    """

    roots: Mapping[str, Path]
    checksums: Mapping[str, str]
    sites: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)


def find_sources(study: Study, data_root: Path | None, cache: Path, reporter: Reporter) -> Sources:
    """Locate every dataset under ``data_root``, or write the study's synthetic twins when there is none.

    Raises:
        DataError: a dataset is not there. StudyError: no data root is given and the study has no twins.
    """
    datasets = {name: DATASETS[name] for name in study.dataset_names}
    if study.partition.scheme == "sites":
        return _of_folders(study, datasets, data_root, cache, reporter)
    if data_root is not None:
        roots = locate_all(datasets.values(), data_root)
    else:
        specs = {name: study.twin_spec(name) for name in study.dataset_names}
        with reporter.phase("write synthetic twins"):
            roots = twins(datasets.values(), specs, cache)
    sums = {name: checksum(DATASETS[name].index(root), root) for name, root in roots.items()}
    return Sources(roots, sums)


def server_sources(study: Study, data_root: Path | None, cache: Path, reporter: Reporter) -> Sources:
    """Locate the server's datasets alone: ``data_root`` is its folder, or one that holds a folder ``server``.

    Without a data root the server's synthetic twins are written.

    Raises:
        DataError: a dataset is not there. StudyError: no data root is given and the study has no twins.
    """
    datasets = {name: DATASETS[name] for name in study.dataset_names}
    if data_root is None:
        specs = {name: study.twin_spec(name) for name in study.dataset_names}
        with reporter.phase("write synthetic twins"):
            roots = twins(datasets.values(), specs, cache)
    else:
        inside = data_root / SERVER
        roots = locate_all(datasets.values(), inside if inside.is_dir() else data_root)
    return Sources(roots, checksums(datasets, {SERVER: roots}))


def decode_all(
    study: Study, sources: Sources, skip_bad: bool, reporter: Reporter, cache: DecodedCache | None = None
) -> dict[str, Decoded]:
    """Decode every dataset (of a federation of folders: the server's); a bad file stops the run at once."""
    return decode_at(study, sources.roots, Reading(reporter, skip_bad, cache))


def cohort_of(
    study: Study,
    sources: Sources,
    data: Mapping[str, Decoded],
    skip_bad: bool,
    reporter: Reporter,
    cache: DecodedCache | None = None,
) -> Cohort:
    """Divide the decoded ``data`` over clients and server; of a federation of folders, decode the sites' too.

    Raises:
        DataError: a task, or a site, has no example left.
    """
    if study.partition.scheme != "sites":
        return divide(study, data)
    found = [
        read_site(study, name, at, Reading(reporter, skip_bad, cache)) for name, at in sorted(sources.sites.items())
    ]
    sites = [site for site in found if site.num_examples >= study.partition.min_examples]
    if not sites:
        raise DataError(
            f"every site has fewer than partition.min_examples = {study.partition.min_examples} training examples",
            where=", ".join(site.site for site in found),
            hint="give the sites more data of the study's tasks, or lower partition.min_examples",
        )
    cohort = server_cohort(study, data, pool({site.site: moments_at(study, site) for site in sites}))
    left_out = sorted(sources.sites.keys() - {site.site for site in sites})
    return with_sites(cohort, sites, sampled_modalities(study), study.seed, left_out)


def server_cohort(study: Study, data: Mapping[str, Decoded], moments: Mapping[str, Moments]) -> Cohort:
    """Return the cohort of a federation of folders as its server sees it: its own data, and pooled moments.

    Args:
        study: a study with ``partition.scheme = "sites"``.
        data: the server's data (:func:`server_sources`, :func:`decode_all`).
        moments: pooled over the sites (:func:`medfed.data.sites.pool`).

    Raises:
        DataError: a task has no example left.
    """
    modalities = sampled_modalities(study)
    sets = server_sets(
        data, study.train_tasks, _unseen(study), modalities, study.split, study.seed, moments, study.missing
    )
    return cohort_of_server(sets, study.train, moments, study.seed)


def divide(study: Study, data: Mapping[str, Decoded]) -> Cohort:
    """Split and partition the decoded data over clients and server."""
    modalities = {name: study.modality(name) for name in study.modality_names}
    return build_cohort(
        data, study.train_tasks, _unseen(study), modalities, study.split, study.partition, study.seed, study.missing
    )


def _unseen(study: Study) -> tuple[Task, ...]:
    return tuple(task for task in study.tasks if task.name in study.unseen)


def _of_folders(
    study: Study, datasets: Mapping[str, Dataset], data_root: Path | None, cache: Path, reporter: Reporter
) -> Sources:
    trained = sorted({task.dataset for task in study.train_tasks})
    if data_root is None:
        parties = site_twins(study, cache, reporter)
    else:
        folders = site_folders(data_root)
        parties = {SERVER: locate_all(datasets.values(), data_root / SERVER)}
        parties |= {site: locate_held(site, [DATASETS[n] for n in trained], path) for site, path in folders.items()}
    sites = {name: roots for name, roots in parties.items() if name != SERVER}
    return Sources(parties[SERVER], checksums(datasets, parties), sites)


def write_folders(study: Study, out: Path, reporter: Reporter) -> None:
    """Write the twins of a federation of folders as a data root: ``out/server/<dataset>``, ``out/site-0/<dataset>``, ….

    A run on that root has the weights of the run without a data root.

    Raises:
        StudyError: the study has no twins, or another partition. DataError: a folder exists.
    """
    if study.partition.scheme != "sites":
        raise StudyError(
            f"the study {study.name!r} deals one pool of patients to its clients, so sites have no folders",
            where="partition.scheme",
            hint='use partition.scheme = "sites", or write a dataset: medfed data synth NAME --out DIR',
        )
    for party, specs in _twins_of(study).items():
        for name, spec in specs.items():
            folder = out / party / name
            if folder.exists():
                raise DataError("the folder exists", where=folder, hint="choose another --out, or remove it")
            with reporter.phase(f"write {folder}"):
                write_twin(DATASETS[name], folder, spec)


def site_twins(study: Study, cache: Path, reporter: Reporter) -> dict[str, dict[str, Path]]:
    """Write the twins of server and sites into ``cache``; return party → dataset → root."""
    parties = _twins_of(study)
    places = {
        party: {name: twin_place(DATASETS[name], spec, cache) for name, spec in own.items()}
        for party, own in parties.items()
    }
    with reporter.phase("write synthetic twins"):
        write_missing(
            (DATASETS[name], places[party][name], spec) for party, own in parties.items() for name, spec in own.items()
        )
    return places


def _twins_of(study: Study) -> dict[str, dict[str, TwinSpec]]:
    specs = {name: study.twin_spec(name) for name in study.dataset_names}
    check_simulators(DATASETS[name] for name in specs)
    trained = {task.dataset for task in study.train_tasks}
    return twin_specs(study.dataset_names, trained, specs, study.partition)
