"""``medfed data check``: open every file under a data root and list all that are bad at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medfed.core.catalog import DATASETS
from medfed.core.errors import DataError, MedfedError
from medfed.core.progress import Reporter
from medfed.data.decode import validate_index
from medfed.data.sources import locate_held, site_folders
from medfed.data.synthetic import SERVER
from medfed.datasets.base import Dataset, Problem


def check_folder(data_root: Path, names: Sequence[str], reporter: Reporter) -> int:
    """Check the datasets ``names`` (or all that are found) and return how many problems there are.

    A folder with a ``server`` in it is a federation's: every site's folder and the server's is checked in turn.

    Raises:
        DataError: the folder, or a site's, is absent or empty, a named dataset is not in it, or no dataset is.
    """
    if not (data_root / SERVER).is_dir():
        return _check_datasets(data_root, names, reporter)
    total = 0
    for party, folder in {SERVER: data_root / SERVER, **site_folders(data_root)}.items():
        held = locate_held(party, _chosen(names), folder)
        reporter.say(f"{party}:")
        total += _check_datasets(folder, sorted(held), reporter)
    return total


def _chosen(names: Sequence[str]) -> list[Dataset]:
    return [DATASETS.lookup(name) for name in names] or list(DATASETS.values())


def _check_datasets(data_root: Path, names: Sequence[str], reporter: Reporter) -> int:
    present: list[tuple[Dataset, Path]] = []
    for dataset in _chosen(names):
        try:
            present.append((dataset, dataset.locate(data_root)))
        except DataError:
            if names or not data_root.is_dir():
                raise
    if not present:
        raise DataError("no known dataset here", where=data_root, hint="see `medfed data list` for the layouts")
    total = 0
    for dataset, root in present:
        problems, num_examples = check_dataset(dataset, root, reporter)
        reporter.say(f"{dataset.name}: {num_examples} examples, {len(problems)} problem(s)  ({root})")
        for problem in problems:
            reporter.say(f"  {problem.where}: {problem.what}")
        total += len(problems)
    return total


def check_dataset(dataset: Dataset, root: Path, reporter: Reporter) -> tuple[list[Problem], int]:
    """Return every problem of one dataset and how many examples were looked at."""
    try:
        index = dataset.index(root)
        validate_index(dataset, root, index)
    except MedfedError as error:
        return [Problem("", str(error.where), error.what)], 0
    problems = []
    with reporter.phase(f"check {dataset.name}") as advance:
        for number, problem in enumerate(dataset.check(root), start=1):
            advance(number, len(index))
            if problem is not None:
                problems.append(problem)
    return problems, len(index)
