"""Synthetic twins of a study's datasets: in the cache, or as a data root.

The server has the study's twins. In a federation of folders every site has twins of its own, with the seed that
follows. A twin in the cache appears whole, so a killed run leaves no half twin.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import as_completed
from pathlib import Path

from medfed.core.catalog import DATASETS
from medfed.core.code import in_main
from medfed.core.errors import DataError, StudyError
from medfed.core.processes import pool, without_main
from medfed.core.progress import Reporter
from medfed.datasets.base import TWIN_MARKER, Dataset, write_twin
from medfed.study.data import TwinSpec
from medfed.study.study import Study

SERVER = "server"
"""The server's name among the parties, and its folder."""
TWIN_VERSION = 1
"""Raise it when a simulator changes, so that cached twins are written anew."""


def twin_specs(study: Study) -> dict[str, dict[str, TwinSpec]]:
    """Return party (``server``, ``site-0``, …) → dataset → its twin.

    The server has every dataset of the study; a site has those of trained tasks that ``partition.holdings`` gives it.

    Raises:
        StudyError: the study has no twins.
    """
    specs = {name: study.twin_spec(name) for name in study.dataset_names}
    parties = {SERVER: specs}
    if study.partition.scheme == "sites":
        trained = {task.dataset for task in study.train_tasks}
        for number, site in enumerate(study.partition.twin_sites):
            held = study.partition.holdings.get(site, trained)
            parties[site] = {
                name: spec.model_copy(update={"seed": spec.seed + 1 + number})
                for name, spec in specs.items()
                if name in held
            }
    return parties


def cached_twins(
    parties: Mapping[str, Mapping[str, TwinSpec]], cache: Path, reporter: Reporter
) -> dict[str, dict[str, Path]]:
    """Return party → dataset → root of its twin, writing those that ``cache`` does not hold yet.

    Raises:
        DataError: a dataset has no simulator; nothing is written.
    """
    _check_simulators(parties)
    places = {
        party: {name: twin_place(DATASETS[name], spec, cache) for name, spec in specs.items()}
        for party, specs in parties.items()
    }
    with reporter.phase("write synthetic twins"):
        write_missing(
            (DATASETS[name], places[party][name], spec)
            for party, specs in parties.items()
            for name, spec in specs.items()
        )
    return places


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


def write_folders(study: Study, out: Path, reporter: Reporter) -> None:
    """Write the twins of a federation of folders as a data root: ``out/server/<dataset>``, ``out/site-0/<dataset>``, ….

    A run on that root has the weights of the run without a data root.

    Raises:
        StudyError: the study has no twins, or another partition.
        DataError: a folder exists, or a dataset has no simulator.
    """
    if study.partition.scheme != "sites":
        raise StudyError(
            f"the study {study.name!r} deals one pool of patients to its clients, so sites have no folders",
            where="partition.scheme",
            hint='use partition.scheme = "sites", or write a dataset: medfed data synth NAME --out DIR',
        )
    parties = twin_specs(study)
    _check_simulators(parties)
    for party, specs in parties.items():
        for name, spec in specs.items():
            write_new(DATASETS[name], out / party / name, spec, reporter)


def write_new(dataset: Dataset, folder: Path, spec: TwinSpec, reporter: Reporter) -> None:
    """Write a twin to a new folder.

    Raises:
        DataError: the folder exists, or the dataset has no simulator.
    """
    if folder.exists():
        raise DataError("the folder exists", where=folder, hint="choose another --out, or remove it")
    with reporter.phase(f"write {folder}"):
        write_twin(dataset, folder, spec)


def _write_whole(dataset: Dataset, root: Path, spec: TwinSpec) -> None:
    partial = root.with_name(f".{root.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    write_twin(dataset, partial, spec)
    shutil.rmtree(root, ignore_errors=True)
    partial.rename(root)


def _check_simulators(parties: Mapping[str, Mapping[str, TwinSpec]]) -> None:
    names = sorted(name for name in set[str]().union(*parties.values()) if not DATASETS[name].has_twin)
    if names:
        plural = "s" if len(names) > 1 else ""
        raise DataError(
            f"the dataset{plural} {', '.join(names)}: no simulator, so no synthetic twin",
            hint="run on the real data: --data-root DIR (in Python data_root=DIR)",
        )
