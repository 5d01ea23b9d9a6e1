"""ICU cohorts in the format of YAIB (FedKIM Table 2: mortality prediction, MP; sepsis prediction, SP).

Two native layouts are read:

- ``<cohort>/<database>/{dyn,outc,sta}.parquet``, the published demo data of several databases;
- ``<cohort>/{dyn,outc,sta}.parquet``, a cohort extracted by a user; its database is ``yaib`` and its site is unknown.

``dyn`` holds one row per stay and hour with 48 variables, ``outc`` the outcome; ``sta`` is not used. A stay in both
cohorts is one patient. Only the first 24 hours are read.
Source: van de Water et al. 2024, Yet Another ICU Benchmark.

Deviation: duplicate hours of a stay are averaged; the paper does not say.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from medfed.core.errors import DataError
from medfed.datasets.base import Dataset, Raw, Record, require
from medfed.datasets.first_day import NUM_HOURS, FirstDay
from medfed.datasets.tables import FileState, constant_files, read_parquet
from medfed.modalities.timeseries import ICU

VARIABLES = tuple(chain.from_iterable(ICU.values()))
AGAIN = "extract the cohort again, or compare it with the version on the dataset's card"


class Yaib(Dataset):
    """A cohort of ICU stays; subclasses name the cohort's folder and read its outcome."""

    cohort: ClassVar[str]
    modalities = tuple(ICU)

    def locate(self, data_root: Path) -> Path:
        """Find the folder that holds the cohort's folder, in either native layout."""
        try:
            return super().locate(data_root)
        except DataError:
            for depth in range(4):
                for hit in sorted(data_root.glob("/".join(["*"] * depth + [self.cohort, "dyn.parquet"]))):
                    return hit.parents[1]
            raise

    def index(self, root: Path) -> pl.DataFrame:
        """Read the outcome tables of every database; none may list a stay twice."""
        nested = {path.parent for path in root.glob(f"{self.cohort}/*/*.parquet")}
        return pl.concat([self._index_of(root, folder) for folder in sorted(nested) or [root / self.cohort]])

    def load(self, root: Path, record: Record) -> Raw:
        """Return modality → ``[24 hours, variable]``, NaN where not observed; ``dyn.parquet`` must have the stay."""
        path = root / str(record["files"][0])
        hours = _first_day(FileState.of(path)).of(record["stay_id"])
        if hours is None:
            raise DataError(f"stay {record['stay_id']} has an outcome but no row here", where=path, hint=AGAIN)
        ends = np.cumsum([len(group) for group in ICU.values()])[:-1]
        return dict(zip(ICU, np.split(hours, ends, axis=1), strict=True))

    @abstractmethod
    def outcome(self, path: Path) -> pl.DataFrame:
        """Read ``outc.parquet`` into columns stay_id and the target (Int8)."""

    def _index_of(self, root: Path, folder: Path) -> pl.DataFrame:
        database = folder.name if folder.name != self.cohort else None
        identity = pl.concat_str(pl.lit(f"{database or 'yaib'}:"), pl.col("stay_id"))
        files = [(folder.relative_to(root) / file).as_posix() for file in ("dyn.parquet", "outc.parquet")]
        outcome = self.outcome(folder / "outc.parquet").sort("stay_id")
        return outcome.select(
            identity.alias("example"),
            identity.alias("patient"),
            pl.lit(database, pl.Utf8).alias("site"),
            pl.lit(None, pl.Utf8).alias("split"),
            constant_files(files),
            *self.targets,
            "stay_id",
        )


class YaibMortality(Yaib):
    """Death in the ICU, from the first 24 hours."""

    name = "yaib-mortality"
    cohort: ClassVar[str] = "mortality24"
    targets = ("mortality",)
    marker = "mortality24/*/dyn.parquet"
    simulator = "medfed.twins.icu:write_mortality_twin"

    def outcome(self, path: Path) -> pl.DataFrame:
        """One row per stay, label 0 or 1."""
        return _labels(path, ("stay_id",), "mortality")


class YaibSepsis(Yaib):
    """Onset of sepsis (Sepsis-3) at any time of the stay."""

    name = "yaib-sepsis"
    cohort: ClassVar[str] = "sepsis"
    targets = ("sepsis",)
    marker = "sepsis/*/dyn.parquet"
    simulator = "medfed.twins.icu:write_sepsis_twin"

    def outcome(self, path: Path) -> pl.DataFrame:
        """One row per stay and hour, label true around the onset; a stay is positive if any hour is."""
        return _at_any_hour(path, "sepsis")


class YaibKidneyInjury(Yaib):
    """Acute kidney injury (KDIGO) at any time of the stay."""

    name = "yaib-aki"
    cohort: ClassVar[str] = "aki"
    targets = ("kidney_injury",)
    marker = "aki/*/dyn.parquet"
    simulator = "medfed.twins.icu:write_kidney_injury_twin"

    def outcome(self, path: Path) -> pl.DataFrame:
        """One row per stay and hour, label true around the onset; a stay is positive if any hour is."""
        return _at_any_hour(path, "kidney_injury")


@lru_cache(maxsize=8)
def _first_day(state: FileState) -> FirstDay:
    """Read a ``dyn.parquet`` once; a rewritten file has another state and is read anew."""
    file = state.path
    table = read_parquet(file, ("stay_id", "time", *VARIABLES))
    kind = table.schema["time"]
    require(isinstance(kind, pl.Duration), f"column 'time' is {kind}; a duration is needed", file, AGAIN)
    try:
        table = table.select(
            _stay_id(table, file),
            (pl.col("time").dt.total_seconds() // 3600).alias("hour"),
            *(pl.col(variable).cast(pl.Float32) for variable in VARIABLES),
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(f"a variable is not a number: {error}", where=file, hint=AGAIN) from error
    table = table.filter(pl.col("hour").is_between(0, NUM_HOURS - 1)).sort("stay_id", "hour", maintain_order=True)
    if table.select(pl.struct("stay_id", "hour").is_duplicated().any()).item():
        table = table.group_by("stay_id", "hour", maintain_order=True).mean()
    stays = table["stay_id"].unique().sort()
    values = np.full((len(stays), NUM_HOURS, len(VARIABLES)), np.nan, np.float32)
    rows = stays.to_numpy().searchsorted(table["stay_id"].to_numpy())
    values[rows, table["hour"].to_numpy()] = table.select(VARIABLES).fill_null(np.nan).to_numpy()
    return FirstDay(values, {stay: row for row, stay in enumerate(stays)})


def _stay_id(table: pl.DataFrame, path: Path) -> pl.Series:
    column = table["stay_id"]
    whole = column.dtype.is_integer() and not column.null_count()
    what = f"column 'stay_id' is {column.dtype} with {column.null_count()} empty cells; whole numbers are needed"
    require(whole, what, path, AGAIN)
    return column.cast(pl.Int64)


def _at_any_hour(path: Path, target: str) -> pl.DataFrame:
    labels = _labels(path, ("stay_id", "time"), target)
    return labels.group_by("stay_id").agg(pl.col(target).max())


def _labels(path: Path, key: tuple[str, ...], target: str) -> pl.DataFrame:
    """Read ``outc.parquet``, one row by ``key``, into columns stay_id and ``target``."""
    table = read_parquet(path, (*key, "label"))
    twice = table.filter(table.select(pl.struct(key).is_duplicated()).to_series())["stay_id"]
    listed = f"stay {twice.first()!r} is listed twice (by {' and '.join(key)})"
    require(twice.is_empty(), listed, path, "remove the duplicate rows")
    stays, column = _stay_id(table, path), table["label"]
    numeric = column.dtype.is_numeric() or column.dtype == pl.Boolean
    binary = numeric and set(column.drop_nulls().unique().to_list()) <= {0, 1}
    require(binary, f"column 'label' is {column.dtype} and not 0 or 1 throughout", path, AGAIN)
    return pl.DataFrame([stays, column.cast(pl.Int8).alias(target)])


DATASETS: tuple[Dataset, ...] = (YaibMortality(), YaibSepsis(), YaibKidneyInjury())
