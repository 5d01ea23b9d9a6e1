"""The synthetic twin of the ICU cohorts: simulated stays in ``<cohort>/<database>/{dyn,outc,sta}.parquet``.

There are two streams of stays, long (25 hours and more) and short. The mortality cohort takes the first
``num_patients`` long stays. The sepsis cohort takes its first half from the same long stays and the rest from the short
ones. So twins of both cohorts with equal seed and difficulty share stays, with the same id and the same series.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64, Int

from medfed.core.rng import numpy_rng
from medfed.study.data import TwinSpec
from medfed.twins.icu_physiology import (
    DATABASES,
    HOURS_AFTER_ONSET,
    HOURS_COLLECTED,
    NUM_HOURS,
    Stays,
    draw_stays,
    measure,
    observed,
)

MORTALITY_HOURS = 25
HOURS_BEFORE_ONSET = 6
SHARE_FIRST_DATABASE = 0.6
FIRST_ID = 200_001
STRONGEST = 1.4
"""Most that an easy twin exaggerates what burdens do to measurements."""
INTEGERS = {"stay_id": pl.Int32, "label": pl.Int32}
BLOCK = 100
"""Stays simulated together; the same stay comes out whatever the twin's size."""


class Block(NamedTuple):
    """Simulated stays with what was measured (NaN where it was not)."""

    stay_id: Int[np.ndarray, " stay"]
    database: Int[np.ndarray, " stay"]
    stays: Stays
    series: dict[str, Float64[np.ndarray, "stay hour"]]
    body: dict[str, Float64[np.ndarray, " stay"]]


def write_mortality_twin(root: Path, spec: TwinSpec) -> None:
    """Write the cohort ``mortality24``; see :func:`write_cohort`."""
    write_cohort(root, spec, "mortality24")


def write_sepsis_twin(root: Path, spec: TwinSpec) -> None:
    """Write the cohort ``sepsis``; the same spec gives the two cohorts common stays."""
    write_cohort(root, spec, "sepsis")


def write_kidney_injury_twin(root: Path, spec: TwinSpec) -> None:
    """Write the cohort ``aki``; the same spec gives it stays of the cohort ``mortality24``."""
    write_cohort(root, spec, "aki")


def write_cohort(root: Path, spec: TwinSpec, cohort: str) -> None:
    """Write one cohort of ``num_patients`` stays in two databases. Equal specs give equal bytes."""
    if cohort == "mortality24":
        stays, outcome = blocks(spec, "long", spec.num_patients), _mortality
    elif cohort == "aki":
        stays, outcome = blocks(spec, "long", spec.num_patients), _kidney_injury
    else:
        stays, outcome = blocks(spec, "long", spec.num_patients // 2), _sepsis
        stays += blocks(spec, "short", spec.num_patients - spec.num_patients // 2)
    for number, name in enumerate(DATABASES):
        folder = root / cohort / name
        folder.mkdir(parents=True, exist_ok=True)
        chosen = [(block, block.database == number) for block in stays]
        tables = {
            "dyn": pl.concat([_dynamic(block, _hours(block, rows, cohort)) for block, rows in chosen]),
            "outc": pl.concat([outcome(block, rows) for block, rows in chosen]),
            "sta": pl.concat([_static(block, rows) for block, rows in chosen]),
        }
        for file, table in tables.items():
            keys = [column for column in ("stay_id", "time") if column in table.columns]
            table.sort(keys).write_parquet(folder / f"{file}.parquet")


def blocks(spec: TwinSpec, stream: str, count: int) -> list[Block]:
    """Simulate the first ``count`` stays of a stream ("long" or "short")."""
    return [_block(spec, stream, first, min(BLOCK, count - first)) for first in range(0, count, BLOCK)]


def _block(spec: TwinSpec, stream: str, first: int, kept: int) -> Block:
    """Simulate a whole block and keep the first stays, so a stay does not depend on their number."""
    rng = numpy_rng("icu", spec.seed, stream, first)
    stays = draw_stays(BLOCK, stream == "short", spec.difficulty, rng)
    database = (rng.random(BLOCK) > SHARE_FIRST_DATABASE).astype(int)
    average = stays.burden.mean((0, 1))
    visible = average + min(2 * (1 - spec.difficulty), STRONGEST) * (stays.burden - average)
    series = measure(visible, rng)
    series["urine"] = (series["urine"] * np.take(HOURS_COLLECTED, database)[:, None]).round()
    for variable, seen in observed(database, visible, rng).items():
        series[variable] = np.where(seen, series[variable], np.nan)
    height = (rng.normal(176, 8, BLOCK) - 13 * stays.female).round(1)
    weight = (0.0028 * height**2 * rng.lognormal(0, 0.22, BLOCK)).round(1)
    height[rng.random(BLOCK) < 0.05], weight[rng.random(BLOCK) < 0.06] = np.nan, np.nan
    stay_id = FIRST_ID + 2 * (first + np.arange(BLOCK)) + (stream == "short")
    return Block(
        stay_id[:kept],
        database[:kept],
        Stays(*(part[:kept] for part in stays)),
        {variable: values[:kept] for variable, values in series.items()},
        {"age": stays.age[:kept].round(), "height": height[:kept], "weight": weight[:kept]},
    )


def _hours(block: Block, rows: Bool[np.ndarray, " stay"], cohort: str) -> Bool[np.ndarray, "stay hour"]:
    """Which rows of the table exist."""
    length = np.full(len(rows), MORTALITY_HOURS) if cohort == "mortality24" else block.stays.num_hours
    exists: Bool[np.ndarray, "stay hour"] = rows[:, None] & (np.arange(NUM_HOURS) < length[:, None])
    return exists


def _dynamic(block: Block, exists: Bool[np.ndarray, "stay hour"]) -> pl.DataFrame:
    table = _keys(block, exists)
    columns = [pl.Series(name, block.series[name][exists]).fill_nan(None) for name in sorted(block.series)]
    return table.with_columns(columns)


def _mortality(block: Block, rows: Bool[np.ndarray, " stay"]) -> pl.DataFrame:
    return pl.DataFrame({"stay_id": block.stay_id[rows], "label": block.stays.died[rows]}, schema_overrides=INTEGERS)


def _sepsis(block: Block, rows: Bool[np.ndarray, " stay"]) -> pl.DataFrame:
    exists = _hours(block, rows, "sepsis")
    window = block.stays.num_hours - 1 - HOURS_AFTER_ONSET - HOURS_BEFORE_ONSET
    label = block.stays.septic[:, None] & (np.arange(NUM_HOURS) >= window[:, None])
    return _keys(block, exists).with_columns(label=pl.Series(label[exists]))


def _kidney_injury(block: Block, rows: Bool[np.ndarray, " stay"]) -> pl.DataFrame:
    """Label every hour from the first creatinine that lies 0.3 mg/dL above the lowest so far (KDIGO)."""
    exists = _hours(block, rows, "aki")
    creatinine = block.series["crea"]
    lowest = np.fmin.accumulate(creatinine, axis=1)
    with np.errstate(invalid="ignore"):
        label = np.maximum.accumulate(creatinine - lowest >= 0.3, axis=1)
    return _keys(block, exists).with_columns(label=pl.Series(label[exists]))


def _static(block: Block, rows: Bool[np.ndarray, " stay"]) -> pl.DataFrame:
    body = {name: pl.Series(values[rows]).fill_nan(None) for name, values in block.body.items()}
    sex = np.where(block.stays.female[rows], "Female", "Male")
    return pl.DataFrame(
        {"stay_id": block.stay_id[rows], "age": body["age"], "sex": sex} | body, schema_overrides=INTEGERS
    )


def _keys(block: Block, exists: Bool[np.ndarray, "stay hour"]) -> pl.DataFrame:
    stay, hour = np.nonzero(exists)
    milliseconds = pl.Series(hour * 3_600_000).cast(pl.Duration("ms"))
    return pl.DataFrame({"stay_id": block.stay_id[stay], "time": milliseconds}, schema_overrides=INTEGERS)
