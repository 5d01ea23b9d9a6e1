"""."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from medfed.core.errors import DataError, MedfedError
from medfed.data.cache import Arrays, DecodedCache
from medfed.datasets.base import Dataset, Problem
from medfed.datasets.decoded import Decoded
from medfed.modalities.base import Modality


def decode(
    dataset: Dataset,
    root: Path,
    modalities: Mapping[str, Modality],
    *,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cache: DecodedCache | None = None,
) -> Decoded:
    """Decode every example of ``dataset`` under ``root``, or take the arrays that an earlier run left in ``cache``.

    Args:
        dataset: what to decode.
        root: its native root.
        modalities: settings by modality name; must cover the dataset's modalities and truths.
        skip_bad: leave unreadable examples out and count them instead of stopping at the first.
        progress: called with (done, total).
        cache: where decoded arrays are kept; None keeps none.

    Raises:
        DataError: an example cannot be read, or the index breaks its contract.
    """
    index = dataset.index(root)
    validate_index(dataset, root, index)
    fresh = partial(_decoded, dataset, root, index, modalities, skip_bad, progress)
    arrays = cache.arrays(dataset, root, index, modalities, fresh, skip_bad=skip_bad) if cache else fresh()
    progress(len(index), len(index))
    good = np.array([row not in arrays.problems for row in range(len(index))], bool)
    samples = {name: values if good.all() else values[good] for name, values in arrays.samples.items()}
    return Decoded(
        dataset.name,
        dataset.card_at(root),
        index.filter(pl.Series(good)),
        {name: samples[name] for name in dataset.modalities},
        {name: arrays.present[name][good] for name in dataset.modalities},
        tuple(arrays.problems.values()),
        {name: samples[name] for name in dataset.truths},
    )


def _decoded(
    dataset: Dataset,
    root: Path,
    index: pl.DataFrame,
    modalities: Mapping[str, Modality],
    skip_bad: bool,
    progress: Callable[[int, int], None],
) -> Arrays:
    names = (*dataset.modalities, *dataset.truths)
    samples = {name: np.zeros((len(index), *modalities[name].sample_shape), modalities[name].dtype) for name in names}
    present = {name: np.zeros(len(index), bool) for name in names}
    problems: dict[int, Problem] = {}
    for row, record in enumerate(index.iter_rows(named=True)):
        try:
            for name, raw in dataset.load(root, record).items():
                samples[name][row] = modalities[name].prepare(raw)
                present[name][row] = True
        except MedfedError as error:
            if not skip_bad:
                raise
            problems[row] = Problem(record["example"], str(error.where), error.what)
        progress(row + 1, len(index))
    return Arrays(samples, present, problems)


def validate_index(dataset: Dataset, root: Path, index: pl.DataFrame) -> None:
    """Check what every later step relies on: unique examples, known patients, no patient in two official splits.

    Raises:
        DataError: naming the first offending example or patient.
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
        raise DataError(
            f"patient {patient!r} is in the splits {' and '.join(splits)}",
            where=root,
            hint="a patient may be in one split only; correct the split column",
        )
