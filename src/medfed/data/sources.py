"""Where a study's data comes from: the user's own folder, or synthetic twins written once into the cache.

Where the data of a federation of folders lies: ``DIR/<site>/<dataset>`` for every site, ``DIR/server/<dataset>``.

Without a data root every site and the server get synthetic twins of their own: the server's are those of the study, a
site's have the seed that follows.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import as_completed
from pathlib import Path

import polars as pl

from medfed.core.catalog import DATASETS
from medfed.core.code import in_main
from medfed.core.errors import DataError
from medfed.core.processes import pool, without_main
from medfed.datasets.base import TWIN_MARKER, Dataset, write_twin
from medfed.study.data import PartitionSettings, TwinSpec


def checksum(index: pl.DataFrame, root: Path) -> str:
    """Return a hash of the index and of every named file's size; no file is opened. Runs are told apart by it."""
    digest = hashlib.sha256(index.write_json().encode())
    for file in index["files"].explode().drop_nulls().unique().sort():
        path = root / file
        digest.update(f"{file}:{path.stat().st_size if path.is_file() else -1}\n".encode())
    return digest.hexdigest()[:16]


def locate_all(datasets: Iterable[Dataset], data_root: Path) -> dict[str, Path]:
    """Return dataset name → its root under ``data_root``; the error of a missing one names all that are missing."""
    roots: dict[str, Path] = {}
    missing: list[DataError] = []
    for dataset in datasets:
        try:
            roots[dataset.name] = dataset.locate(data_root)
        except DataError as error:
            missing.append(error)
    if len(missing) == 1 or (missing and not data_root.is_dir()):
        raise missing[0]
    if missing:
        lines = "; ".join(error.what for error in missing)
        raise DataError(
            lines, where=data_root, hint="check --data-root, or take the tasks that need them out of the study"
        )
    return roots


def twins(datasets: Iterable[Dataset], specs: Mapping[str, TwinSpec], cache: Path, workers: int = 2) -> dict[str, Path]:
    """Return dataset name → root of its synthetic twin, writing those that ``cache`` does not hold yet.

    A twin is written beside its place and renamed when whole, so a killed run leaves no half twin.
    """
    wanted = {dataset.name: (dataset, twin_place(dataset, specs[dataset.name], cache)) for dataset in datasets}
    check_simulators(dataset for dataset, _ in wanted.values())
    write_missing(((dataset, place, specs[name]) for name, (dataset, place) in wanted.items()), workers)
    return {name: place for name, (_, place) in wanted.items()}


def check_simulators(datasets: Iterable[Dataset]) -> None:
    """Refuse datasets that have no synthetic twin.

    Raises:
        DataError: naming all of them.
    """
    names = sorted(dataset.name for dataset in datasets if not dataset.has_twin)
    if names:
        plural = "s" if len(names) > 1 else ""
        raise DataError(
            f"the dataset{plural} {', '.join(names)}: no simulator, so no synthetic twin",
            hint="run on the real data: --data-root DIR (in Python data_root=DIR)",
        )


def twin_place(dataset: Dataset, spec: TwinSpec, cache: Path) -> Path:
    """Return the folder of a twin in ``cache``; a plugin that changed writes another twin."""
    facts: list[object] = [dataset.name, TWIN_VERSION, spec.model_dump()]
    if dataset.name in DATASETS and (origin := DATASETS.origin(dataset.name)):
        facts.append(origin.sha256)
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    return cache / "twins" / f"{dataset.name}-{key}"


def write_missing(wanted: Iterable[tuple[Dataset, Path, TwinSpec]], workers: int = 2) -> None:
    """Write those of the ``wanted`` twins that are not there, in worker processes."""
    jobs = [job for job in wanted if not (job[1] / TWIN_MARKER).is_file()]
    shared = [job for job in jobs if not in_main(type(job[0]))]
    if shared:
        with without_main(), pool(min(workers, len(shared))) as processes:
            for done in as_completed([processes.submit(_write_whole, *job) for job in shared]):
                done.result()
    for job in jobs:
        if in_main(type(job[0])):  # no other process can be given a class of a notebook
            _write_whole(*job)


TWIN_VERSION = 1
"""Raise it when a simulator changes, so that cached twins are written anew."""


def _write_whole(dataset: Dataset, root: Path, spec: TwinSpec) -> None:
    partial = root.with_name(f".{root.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    write_twin(dataset, partial, spec)
    shutil.rmtree(root, ignore_errors=True)
    partial.rename(root)


SERVER = "server"
"""The server's folder."""
Roots = dict[str, Path]
"""Dataset → its native root."""


def site_folders(data_root: Path) -> dict[str, Path]:
    """Return site → its folder, sorted by name.

    Raises:
        DataError: there is no ``server`` folder, or no other one.
    """
    if not data_root.is_dir():
        raise DataError("the data root is not a folder", where=data_root, hint="check --data-root")
    folders = sorted(path for path in data_root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if SERVER not in [folder.name for folder in folders]:
        raise DataError(
            f"no folder {SERVER!r} here; a federation of folders has DIR/{SERVER}/<dataset> and DIR/<site>/<dataset>",
            where=data_root,
            hint="put the server's public, development and test data there, or write twins: medfed data synth --study",
        )
    sites = {folder.name: folder for folder in folders if folder.name != SERVER}
    if not sites:
        raise DataError("no site's folder here", where=data_root, hint="give every site a folder beside the server's")
    return sites


def locate_held(site: str, datasets: Iterable[Dataset], folder: Path) -> Roots:
    """Return the roots of those ``datasets`` that the site's folder holds.

    Raises:
        DataError: it is absent or empty, or holds none of them.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        what = "the site's folder is empty" if folder.is_dir() else "the site has no folder"
        raise DataError(
            what, where=f"site {site!r}: {folder}", hint="put its datasets there, in native layout, or remove the site"
        )
    roots: Roots = {}
    wanted = list(datasets)
    for dataset in wanted:
        try:
            roots[dataset.name] = dataset.locate(folder)
        except DataError:
            continue
    if not roots:
        raise DataError(
            f"the site has none of the wanted datasets ({', '.join(dataset.name for dataset in wanted)})",
            where=f"site {site!r}: {folder}",
            hint="lay one out as `medfed data list` says, or remove the site's folder",
        )
    return roots


def twin_specs(
    datasets: Iterable[str], trained: Iterable[str], specs: Mapping[str, TwinSpec], settings: PartitionSettings
) -> dict[str, dict[str, TwinSpec]]:
    """Return party (``server``, ``site-0``, …) → dataset → the twin it gets.

    Args:
        datasets: all datasets of the study; the server has each.
        trained: those of trained tasks; a site has those of ``settings.holdings``, or all of them.
        specs: the study's spec by dataset: the server's.
        settings: the partition.
    """
    wanted = sorted(trained)
    parties = {SERVER: {name: specs[name] for name in datasets}}
    for number, site in enumerate(settings.twin_sites):
        held = settings.holdings.get(site, tuple(wanted))
        parties[site] = {
            name: specs[name].model_copy(update={"seed": specs[name].seed + 1 + number})
            for name in wanted
            if name in held
        }
    return parties


def checksums(datasets: Mapping[str, Dataset], parties: Mapping[str, Mapping[str, Path]]) -> dict[str, str]:
    """Return dataset → a hash of what lies at all ``parties`` (party → dataset → root) together."""
    sums: dict[str, str] = {}
    for name, dataset in datasets.items():
        held = {party: roots[name] for party, roots in sorted(parties.items()) if name in roots}
        lines = [f"{party}:{checksum(dataset.index(root), root)}" for party, root in held.items()]
        sums[name] = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return sums
