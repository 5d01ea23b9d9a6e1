"""Laboratory values of the first 24 hours in intensive care, as hourly series: the base of MIMIC-IV and eICU.

A value counts in the hour since admission in which its specimen was taken; several in one hour are averaged. Nothing
before admission and nothing from hour 24 on is read, so the outcome cannot leak from later events.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float32

from medfed.datasets.base import Dataset, Raw, Record
from medfed.datasets.tables import constant_files, find_table
from medfed.modalities.timeseries import LABS

NUM_HOURS = 24
_ALIKE: dict[str, dict[str, float]] = {
    "bili bili_dir bun ca crea fgn glu mg phos": {"mg/dl": 1.0},
    "alb hgb": {"g/dl": 1.0},
    "bnd lymph methb neut": {"%": 1.0},
    "be bicar cl k lact na": {"meq/l": 1.0, "mmol/l": 1.0},
    "alp alt ast ck": {"iu/l": 1.0, "units/l": 1.0},
    "plt wbc": {"k/ul": 1.0, "k/mcl": 1.0},
    "ckmb tnt": {"ng/ml": 1.0},
    "pco2 po2": {"mm hg": 1.0, "mmhg": 1.0},
    "cai": {"mmol/l": 1.0, "mg/dl": 1 / 4.008},
    "crp": {"mg/l": 1.0, "mg/dl": 10.0},
    "inr_pt": {"": 1.0, "ratio": 1.0},
    "mch": {"pg": 1.0},
    "mchc": {"g/dl": 1.0, "%": 1.0},
    "mcv": {"fl": 1.0},
    "ph": {"": 1.0, "units": 1.0},
    "ptt": {"sec": 1.0},
}
UNITS = {variable: units for variables, units in _ALIKE.items() for variable in variables.split()}
"""Variable → unit in lower case → factor of a value. A value in another unit is left out: it would be wrong."""


class FirstDay(NamedTuple):
    """Hourly values of many stays, NaN where not measured, and each stay's row."""

    values: Float32[np.ndarray, "stay hour variable"]
    row: Mapping[Any, int]

    def of(self, stay: str | int) -> Float32[np.ndarray, "hour variable"] | None:
        """Return one stay's series; None if nothing was measured."""
        return self.values[self.row[stay]] if stay in self.row else None


def first_day(events: pl.DataFrame) -> FirstDay:
    """Lay events out by stay, hour and variable.

    Their columns are stay (text), minute (since admission), variable (of :data:`LABS`), unit (text or null) and value.
    """
    factors = [(variable, unit, factor) for variable, units in UNITS.items() for unit, factor in units.items()]
    known = pl.DataFrame(factors, schema=["variable", "unit", "factor"], orient="row")
    hour = (pl.col("minute") // 60).cast(pl.Int64).alias("hour")
    table = (
        events.with_columns(hour, pl.col("unit").fill_null("").str.strip_chars().str.to_lowercase())
        .filter(pl.col("hour").is_between(0, NUM_HOURS - 1), pl.col("value").is_finite())
        .join(known, on=["variable", "unit"])
        .group_by("stay", "hour", "variable")
        .agg((pl.col("value") * pl.col("factor")).mean())
    )
    row = {stay: number for number, stay in enumerate(table["stay"].unique().sort())}
    values = np.full((len(row), NUM_HOURS, len(LABS)), np.nan, np.float32)
    place = {variable: number for number, variable in enumerate(LABS)}
    for stay, at, variable, value in table.iter_rows():
        values[row[stay], at, place[variable]] = value
    return FirstDay(values, row)


class FirstDayDataset(Dataset):
    """Stays with laboratory values of the first day; the target is death in hospital."""

    modalities = ("labs", "person")
    targets = ("mortality",)
    stay: ClassVar[str]
    """The index column that names a stay in :meth:`series`."""
    tables: ClassVar[tuple[str, ...]]

    def index(self, root: Path) -> pl.DataFrame:
        """One row per stay; ``mortality`` is death before discharge from hospital, null where not recorded."""
        columns = ("example", "patient", "site", "split", "files", "mortality", "age", "female", self.stay)
        files = [find_table(root, name).relative_to(root).as_posix() for name in self.tables]
        return self.stays(root).with_columns(constant_files(files), split=pl.lit(None, pl.Utf8)).select(columns)

    @abstractmethod
    def stays(self, root: Path) -> pl.DataFrame:
        """Return the columns of the index but ``split`` and ``files``."""

    @abstractmethod
    def series(self, root: Path) -> FirstDay:
        """Return the laboratory values of every stay; tables are read once."""

    def load(self, root: Path, record: Record) -> Raw:
        """Return ``labs`` ``[24 hours, variable]``, NaN where not measured, and ``person`` ``[1, age and female]``.

        A stay without any value lacks ``labs``; age and sex may be unknown.
        """
        person = np.array([[record["age"], record["female"]]], np.float64)
        labs = self.series(root).of(record[self.stay])
        return {"person": person} if labs is None else {"person": person, "labs": labs}
