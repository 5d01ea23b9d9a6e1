"""Get a study's data ready: find or write it, index it, decode it, divide it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medfed.datasets import DATASETS
from medfed.datasets.decode import Decoded, decode
from medfed.datasets.sources import checksum, locate_all, twins
from medfed.progress import Reporter
from medfed.study import Study
from medfed.tasks.cohort import Cohort, build_cohort


@dataclass(frozen=True)
class Sources:
    """Where each dataset of a study lies, and the checksum of what lies there."""

    roots: Mapping[str, Path]
    checksums: Mapping[str, str]


def find_sources(study: Study, data_root: Path | None, cache: Path, reporter: Reporter) -> Sources:
    """Locate every dataset under ``data_root``, or write the study's synthetic twins when there is none.

    Raises:
        DataError: a dataset is not there. StudyError: no data root is given and the study has no twins.
    """
    datasets = [DATASETS[name] for name in study.dataset_names]
    if data_root is not None:
        roots = locate_all(datasets, data_root)
    else:
        specs = {name: study.twin_spec(name) for name in study.dataset_names}
        with reporter.phase("write synthetic twins"):
            roots = twins(datasets, specs, cache)
    sums = {name: checksum(DATASETS[name].index(root), root) for name, root in roots.items()}
    return Sources(roots, sums)


def decode_all(study: Study, sources: Sources, skip_bad: bool, reporter: Reporter) -> dict[str, Decoded]:
    """Decode every dataset; files are opened here, so a bad one stops the run before anything is trained."""
    modalities = {name: study.modality(name) for name in study.modality_names}
    data = {}
    for name, root in sources.roots.items():
        with reporter.phase(f"decode {name}") as advance:
            data[name] = decode(DATASETS[name], root, modalities, skip_bad=skip_bad, progress=advance)
        if data[name].skipped:
            reporter.say(f"  left out {len(data[name].skipped)} unreadable example(s) of {name}; the report lists them")
    return data


def divide(study: Study, data: Mapping[str, Decoded]) -> Cohort:
    """Split and partition the decoded data over clients and server."""
    unseen = tuple(task for task in study.tasks if task.name in study.unseen)
    modalities = {name: study.modality(name) for name in study.modality_names}
    return build_cohort(
        data, study.train_tasks, unseen, modalities, study.split, study.partition, study.seed, study.missing
    )
