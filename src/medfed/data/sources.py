"""Where a study's data lies: in the user's folders, or in synthetic twins that are written once into the cache.

A federation of folders has ``DIR/<site>/<dataset>`` for every site, and ``DIR/server/<dataset>``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from medfed.core.catalog import DATASETS
from medfed.core.errors import DataError, StudyError
from medfed.core.progress import Reporter
from medfed.datasets.base import Dataset
from medfed.study.study import Study
from medfed.tasks.base import Task
from medfed.twins.writing import SERVER, cached_twins, twin_specs

Roots = dict[str, Path]
"""Dataset → its native root."""
Served = Collection[str] | None
"""Names of the trained tasks that a site serves; None means all."""


@dataclass(frozen=True)
class Sources:
    """Where each dataset of a study lies, and the checksum of its files.

    Of a federation of folders the roots are the server's, and a checksum is of the server's and the sites' together.
    """

    roots: Roots
    checksums: Mapping[str, str]
    sites: Mapping[str, Roots] = field(default_factory=dict)
    """Of a federation of folders, site → dataset → root, if the sites' data is on this machine."""


def find_sources(study: Study, data_root: Path | None, cache: Path, reporter: Reporter) -> Sources:
    """Locate every dataset under ``data_root``, or write the study's synthetic twins when there is none.

    Raises DataError if a dataset is not there, StudyError if no data root is given and the study has no twins.
    """
    if study.partition.scheme != "sites":
        roots = _server_roots(study, data_root, cache, reporter)
        return Sources(roots, {name: checksum(DATASETS[name].index(root), root) for name, root in roots.items()})
    if data_root is None:
        parties = cached_twins(twin_specs(study), cache, reporter)
    else:
        folders, trained = site_folders(data_root), _datasets_of(study.train_tasks)
        parties = {SERVER: locate_all(_datasets_of(study.tasks), data_root / SERVER)}
        parties |= {site: locate_held(site, trained, folder) for site, folder in folders.items()}
    sites = {name: roots for name, roots in parties.items() if name != SERVER}
    return Sources(parties[SERVER], _checksums(parties), sites)


def server_sources(study: Study, data_root: Path | None, cache: Path, reporter: Reporter) -> Sources:
    """Locate the datasets of a server alone: ``data_root`` is its folder, or one that holds a folder ``server``.

    Without a data root the server's synthetic twins are written. Errors as those of :func:`find_sources`.
    """
    if data_root is not None and (data_root / SERVER).is_dir():
        data_root = data_root / SERVER
    roots = _server_roots(study, data_root, cache, reporter)
    return Sources(roots, _checksums({SERVER: roots}))


def _server_roots(study: Study, data_root: Path | None, cache: Path, reporter: Reporter) -> Roots:
    if data_root is not None:
        return locate_all(_datasets_of(study.tasks), data_root)
    return cached_twins({SERVER: twin_specs(study)[SERVER]}, cache, reporter)[SERVER]


def find_site(study: Study, site: str, folder: Path, tasks: Served = None) -> Roots:
    """Return the roots of the site's datasets: those of the trained tasks in ``tasks``, or of all trained ones.

    Raises DataError if the folder is absent, empty or without the tasks' datasets, StudyError if no task may be served.
    """
    return locate_held(site, _datasets_of(served_tasks(study, site, tasks)), folder)


def served_tasks(study: Study, site: str, tasks: Served) -> tuple[Task, ...]:
    """Return the study's trained tasks in ``tasks`` (None means all). Raises StudyError if there are none."""
    served = tuple(task for task in study.train_tasks if tasks is None or task.name in tasks)
    if not served:
        what = f"none of the study's tasks ({', '.join(study.train)}) may be served here"
        hint = "allow one of them at the site, or leave the site out of this study"
        raise StudyError(what, where=f"site {site!r}", hint=hint)
    return served


def site_folders(data_root: Path) -> dict[str, Path]:
    """Return site → its folder, sorted by name. Raises DataError if no folder is called ``server``, or no other one."""
    if not data_root.is_dir():
        raise DataError("the data root is not a folder", where=data_root, hint="check --data-root")
    folders = sorted(path for path in data_root.iterdir() if path.is_dir() and not path.name.startswith("."))
    sites = {folder.name: folder for folder in folders}
    if sites.pop(SERVER, None) is None:
        what = f"no folder {SERVER!r} here; a federation of folders has DIR/{SERVER}/<dataset> and DIR/<site>/<dataset>"
        hint = "put the server's public, development and test data there, or write twins: medfed data synth --study"
        raise DataError(what, where=data_root, hint=hint)
    if not sites:
        hint = "give every site a folder next to the server's"
        raise DataError("no site's folder here", where=data_root, hint=hint)
    return sites


def locate_all(datasets: Iterable[Dataset], data_root: Path) -> Roots:
    """Return dataset → its root under ``data_root``; the error of a missing one names all that are missing."""
    roots, errors = located(datasets, data_root)
    if len(errors) == 1 or (errors and not data_root.is_dir()):
        raise errors[0]
    if errors:
        hint = "check --data-root, or take the tasks that need them out of the study"
        raise DataError("; ".join(error.what for error in errors), where=data_root, hint=hint)
    return roots


def locate_held(site: str, datasets: Iterable[Dataset], folder: Path) -> Roots:
    """Return the roots of those ``datasets`` that the site's folder holds.

    Raises DataError if it is absent or empty, or holds none of them.
    """
    where = f"site {site!r}: {folder}"
    if not folder.is_dir() or not any(folder.iterdir()):
        what = "the site's folder is empty" if folder.is_dir() else "the site has no folder"
        raise DataError(what, where=where, hint="put its datasets there, in native layout, or remove the site")
    wanted = list(datasets)
    roots, _ = located(wanted, folder)
    if not roots:
        what = f"the site has none of the wanted datasets ({', '.join(dataset.name for dataset in wanted)})"
        hint = "lay one out as `medfed data list` says, or remove the site's folder"
        raise DataError(what, where=where, hint=hint)
    return roots


def checksum(index: pl.DataFrame, root: Path) -> str:
    """Return a hash of the index and of every named file's size; no file is opened. It tells runs apart."""
    digest = hashlib.sha256(index.write_json().encode())
    for file in index["files"].explode().drop_nulls().unique().sort():
        path = root / file
        digest.update(f"{file}:{path.stat().st_size if path.is_file() else -1}\n".encode())
    return digest.hexdigest()[:16]


def _checksums(parties: Mapping[str, Roots]) -> dict[str, str]:
    """Return dataset → a hash of its files at all ``parties`` (party → dataset → root) together."""
    sums: dict[str, str] = {}
    for name in parties[SERVER]:
        held = [(party, roots[name]) for party, roots in sorted(parties.items()) if name in roots]
        lines = [f"{party}:{checksum(DATASETS[name].index(root), root)}" for party, root in held]
        sums[name] = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return sums


def located(datasets: Iterable[Dataset], folder: Path) -> tuple[Roots, list[DataError]]:
    """Return the roots of the datasets in ``folder``, and the errors of those that are not there."""
    roots, errors = Roots(), list[DataError]()
    for dataset in datasets:
        try:
            roots[dataset.name] = dataset.locate(folder)
        except DataError as error:
            errors.append(error)
    return roots, errors


def _datasets_of(tasks: Iterable[Task]) -> list[Dataset]:
    return [DATASETS[name] for name in sorted({task.dataset for task in tasks})]
