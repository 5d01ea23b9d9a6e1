"""A dataset in memory: its index, and arrays of fixed-shape samples."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int, Shaped

from medfed.core.errors import DataError
from medfed.datasets.base import Card, Problem
from medfed.modalities.base import Modality, Moments

MEASURE = "measure"
"""Columns of an index that begin so hold what was measured, before normalisation: ``measure:labs:crea.high``."""
CODES = "codes"
"""Column of an index that lists the codes of an example, where the dataset has some."""


@dataclass(frozen=True)
class Decoded:
    """A dataset in memory.

    Attributes:
        index: the dataset's index, one row per example, in the order of the arrays; columns as in ``datasets.base``.
        samples: by modality; zeros where absent.
        present: by modality.
        truths: truths that are no column of the index (masks), as samples; never normalised or missing.
        skipped: examples left out because they could not be read (only with ``skip_bad``).
    """

    name: str
    card: Card
    index: pl.DataFrame
    samples: Mapping[str, Shaped[np.ndarray, "example *sample"]]
    present: Mapping[str, Bool[np.ndarray, " example"]]
    skipped: tuple[Problem, ...] = ()
    truths: Mapping[str, Shaped[np.ndarray, " example *truth"]] = field(default_factory=dict)

    @cached_property
    def examples(self) -> list[str]:
        """Id of every example."""
        return [str(example) for example in self.index["example"]]

    def target(self, column: str) -> Int[np.ndarray, " example"]:
        """Class index per example, −1 where unknown."""
        if column not in self.index.columns:
            raise DataError(f"no target {column!r}; known: {', '.join(self.index.columns)}", where=self.name)
        return self.index[column].fill_null(-1).cast(pl.Int64).to_numpy(writable=True)

    def measure(self, name: str) -> Float[np.ndarray, " example"]:
        """Return a measure of every example, in clinical units; NaN where there is none, or its modality is absent.

        Raises DataError if no modality has it.
        """
        for modality, present in self.present.items():
            if (column := f"{MEASURE}:{modality}:{name}") in self.index.columns:
                return np.where(present, self.index[column].to_numpy(), np.nan)
        known = sorted(name.rpartition(":")[2] for name in self.index.columns if name.startswith(f"{MEASURE}:"))
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
        raise DataError(f"no measure {name!r}", where=self.name, hint=f"it has {', '.join(near or known) or 'none'}")

    def coded(self, code: str) -> Bool[np.ndarray, " example"]:
        """Return which examples have ``code``. Raises DataError if the dataset has no codes."""
        if CODES not in self.index.columns:
            raise DataError(f"no codes, so none is {code!r}", where=self.name, hint="write the rule by measures")
        return self.index[CODES].list.contains(code).to_numpy()

    def measured(self, modalities: Mapping[str, Modality]) -> Decoded:
        """Return the same data with all measures of ``modalities`` as columns of the index; samples are in units."""
        columns = [
            pl.Series(f"{MEASURE}:{name}:{measure}", values)
            for name, modality in modalities.items()
            for measure, values in modality.measures(self.samples[name]).items()
        ]
        return replace(self, index=self.index.with_columns(columns))

    def moments(self, modality: Modality, rows: Int[np.ndarray, " row"]) -> Moments:
        """Return the normalisation statistics of ``rows`` that have the modality."""
        kept = rows[self.present[modality.name][rows]]
        return modality.moments(self.samples[modality.name][kept])

    def normalised(self, modalities: Mapping[str, Modality], moments: Mapping[str, Moments]) -> Decoded:
        """Return the same data with every sample normalised; absent ones stay zero."""
        samples = {}
        for name, values in self.samples.items():
            samples[name] = modalities[name].normalise(values, moments[name].mean, moments[name].std)
            samples[name][~self.present[name]] = 0.0
        return replace(self, samples=samples)


def stacked(parts: Sequence[Decoded]) -> Decoded:
    """Return the examples of all ``parts``, which are of one dataset, one after the other."""

    def joined(kind: str) -> dict[str, np.ndarray]:
        arrays = [getattr(part, kind) for part in parts]
        return {name: np.concatenate([part[name] for part in arrays]) for name in arrays[0]}

    return replace(
        parts[0],
        index=pl.concat([part.index for part in parts], how="diagonal_relaxed"),
        samples=joined("samples"),
        present=joined("present"),
        skipped=tuple(problem for part in parts for problem in part.skipped),
        truths=joined("truths"),
    )
