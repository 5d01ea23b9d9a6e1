"""Where a study's data comes from: the user's own folder, or synthetic twins written once into the cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import polars as pl

from medfed.datasets.base import TWIN_MARKER, Dataset, TwinSpec, write_twin
from medfed.errors import DataError


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
    write_missing(((dataset, place, specs[name]) for name, (dataset, place) in wanted.items()), workers)
    return {name: place for name, (_, place) in wanted.items()}


def twin_place(dataset: Dataset, spec: TwinSpec, cache: Path) -> Path:
    """Return the folder of a twin in ``cache``."""
    key = hashlib.sha256(json.dumps([dataset.name, TWIN_VERSION, spec.model_dump()]).encode()).hexdigest()[:12]
    return cache / "twins" / f"{dataset.name}-{key}"


def write_missing(wanted: Iterable[tuple[Dataset, Path, TwinSpec]], workers: int = 2) -> None:
    """Write those of the ``wanted`` twins that are not there, in worker processes."""
    jobs = [job for job in wanted if not (job[1] / TWIN_MARKER).is_file()]
    if jobs:
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
            for done in as_completed([pool.submit(_write_whole, *job) for job in jobs]):
                done.result()


TWIN_VERSION = 1
"""Raise it when a simulator changes, so that cached twins are written anew."""


def _write_whole(dataset: Dataset, root: Path, spec: TwinSpec) -> None:
    partial = root.with_name(f".{root.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    write_twin(dataset, partial, spec)
    shutil.rmtree(root, ignore_errors=True)
    partial.rename(root)
