"""Open every file: decode datasets into arrays of fixed-shape samples, or list all files that are bad."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from medfed.core.catalog import DATASETS
from medfed.core.errors import DataError, MedfedError
from medfed.core.progress import Reporter
from medfed.data.cache import Arrays, DecodedCache, Source
from medfed.data.sources import Roots, locate_held, located, site_folders
from medfed.datasets.base import Dataset, Problem
from medfed.datasets.decoded import Decoded
from medfed.modalities.base import Modality
from medfed.study.study import Study
from medfed.twins.writing import SERVER

Advance = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True)
class Reading:
    """The way data is read: ``skip_bad`` counts unreadable examples instead of stopping at the first."""

    reporter: Reporter
    skip_bad: bool = False
    cache: DecodedCache | None = None


def decode_all(study: Study, roots: Mapping[str, Path], reading: Reading, title: str = "decode") -> dict[str, Decoded]:
    """Decode the datasets at ``roots`` (dataset → root) for ``study``. Raises DataError at the first bad file."""
    modalities = {name: study.modality(name) for name in study.modality_names}
    reporter, skip_bad, cache = reading.reporter, reading.skip_bad, reading.cache
    data = {}
    for name, root in roots.items():
        with reporter.phase(f"{title} {name}") as advance:
            data[name] = decode(DATASETS[name], root, modalities, skip_bad=skip_bad, progress=advance, cache=cache)
        if wanted := [modality for modality in data[name].samples if modality in study.measured_modalities]:
            with reporter.phase(f"measure {name}"):
                data[name] = data[name].measured({modality: modalities[modality] for modality in wanted})
        if skipped := len(data[name].skipped):
            reporter.say(f"  left out {skipped} unreadable example(s) of {name}; the report lists them")
    return data


def decode(
    dataset: Dataset,
    root: Path,
    modalities: Mapping[str, Modality],
    *,
    skip_bad: bool = False,
    progress: Advance = lambda done, total: None,
    cache: DecodedCache | None = None,
) -> Decoded:
    """Decode every example of ``dataset`` under ``root``, or take the arrays that an earlier run left in ``cache``.

    ``modalities`` must cover the dataset's modalities and truths; see :class:`Reading` for ``skip_bad`` and ``cache``.
    Raises DataError if an example cannot be read, or the index breaks its contract.
    """
    index = dataset.index(root)
    validate_index(dataset, root, index)
    source = Source(dataset, root, index, {name: modalities[name] for name in (*dataset.modalities, *dataset.truths)})
    fresh = partial(_decoded, source, skip_bad, progress)
    arrays = cache.arrays(source, fresh, skip_bad=skip_bad) if cache else fresh()
    progress(len(index), len(index))
    good = np.array([row not in arrays.problems for row in range(len(index))], bool)
    kept = {name: values if good.all() else values[good] for name, values in arrays.samples.items()}
    samples, truths = ({name: kept[name] for name in names} for names in (dataset.modalities, dataset.truths))
    present = {name: arrays.present[name][good] for name in dataset.modalities}
    index, problems = index.filter(pl.Series(good)), tuple(arrays.problems.values())
    return Decoded(dataset.name, dataset.card_at(root), index, samples, present, problems, truths)


def _decoded(source: Source, skip_bad: bool, progress: Advance) -> Arrays:
    count, modalities = len(source.index), source.modalities
    samples = {name: np.zeros((count, *kind.sample_shape), kind.dtype) for name, kind in modalities.items()}
    present = {name: np.zeros(count, bool) for name in modalities}
    problems: dict[int, Problem] = {}
    for row, record in enumerate(source.index.iter_rows(named=True)):
        try:
            for name, raw in source.dataset.load(source.root, record).items():
                samples[name][row] = modalities[name].prepare(raw)
                present[name][row] = True
        except MedfedError as error:
            if not skip_bad:
                raise
            problems[row] = Problem(record["example"], str(error.where), error.what)
        progress(row + 1, count)
    return Arrays(samples, present, problems)


def validate_index(dataset: Dataset, root: Path, index: pl.DataFrame) -> None:
    """Check what every later step relies on: unique examples, known patients, no patient in two official splits.

    Raises DataError that names the first offending example or patient.
    """
    if index.is_empty():
        raise DataError("the index is empty", where=root, hint=f"check the files of {dataset.card.title}")
    twice = index.filter(index["example"].is_duplicated())
    if not twice.is_empty():
        raise DataError(f"example {twice['example'][0]!r} is listed twice", where=root, hint="remove the duplicate row")
    if index["patient"].null_count():
        example = index.filter(index["patient"].is_null())["example"][0]
        raise DataError(f"example {example!r} has no patient", where=root, hint="fill in the patient column")
    crossing = index.drop_nulls("split").group_by("patient").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)
    if not crossing.is_empty():
        patient = crossing["patient"].sort()[0]
        splits = sorted(index.filter(pl.col("patient") == patient)["split"].drop_nulls().unique())
        hint = "a patient may be in one split only; correct the split column"
        raise DataError(f"patient {patient!r} is in the splits {' and '.join(splits)}", where=root, hint=hint)


def check_folder(data_root: Path, names: Sequence[str], reporter: Reporter) -> int:
    """Check the datasets ``names`` (or all that are found) and return how many problems there are.

    A folder with a ``server`` in it is a federation's: every site's folder and the server's is checked in turn. Raises
    DataError if the folder, or a site's, is absent or empty, a named dataset is not in it, or no dataset is.
    """
    chosen = [DATASETS.lookup(name) for name in names] or list(DATASETS.values())
    if (data_root / SERVER).is_dir():
        total = 0
        for party, folder in {SERVER: data_root / SERVER, **site_folders(data_root)}.items():
            held = locate_held(party, chosen, folder)
            reporter.say(f"{party}:")
            total += _check_datasets(dict(sorted(held.items())), reporter)
        return total
    present, errors = located(chosen, data_root)
    if errors and (names or not data_root.is_dir()):
        raise errors[0]
    if not present:
        raise DataError("no known dataset here", where=data_root, hint="see `medfed data list` for the layouts")
    return _check_datasets(present, reporter)


def _check_datasets(roots: Roots, reporter: Reporter) -> int:
    total = 0
    for dataset, root in ((DATASETS[name], root) for name, root in roots.items()):
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
            problems += [problem] if problem is not None else []
    return problems, len(index)
