"""Small native tables of PTB-XL and YAIB, made by hand, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import polars as pl

from medfed.modalities.timeseries import ICU

VARIABLES = [variable for variables in ICU.values() for variable in variables]


def write_ptbxl(root: Path, **changes: str) -> Path:
    """Write a one-row ``ptbxl_database.csv``; ``changes`` replace cells."""
    row = {
        "ecg_id": "7",
        "patient_id": "15709.0",
        "site": "2.0",
        "scp_codes": "{'NORM': 100.0, 'SR': 0.0}",
        "extra_beats": "",
        "strat_fold": "3",
        "filename_lr": "records100/00000/00007_lr",
    }
    pl.DataFrame([row | changes]).write_csv(root / "ptbxl_database.csv")
    return root


def dynamic(rows: Sequence[tuple[int, float]], values: Mapping[str, Sequence[float | None]]) -> pl.DataFrame:
    """A ``dyn`` table of (stay, hours since admission); variables not in ``values`` are never observed."""
    keys = {
        "stay_id": pl.Series([stay for stay, _ in rows], dtype=pl.Int32),
        "time": pl.Series([timedelta(hours=hours) for _, hours in rows], dtype=pl.Duration("ms")),
    }
    empty = [None] * len(rows)
    return pl.DataFrame(keys | {name: pl.Series(values.get(name, empty), dtype=pl.Float64) for name in VARIABLES})


def write_cohort(folder: Path, dyn: pl.DataFrame, outc: pl.DataFrame) -> None:
    """Write ``dyn`` and ``outc`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    dyn.write_parquet(folder / "dyn.parquet")
    outc.write_parquet(folder / "outc.parquet")
