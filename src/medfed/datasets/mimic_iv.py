"""MIMIC-IV: death in hospital from the laboratory values of the first 24 hours in intensive care.

Native layout: ``hosp/{admissions,patients,labevents}.csv.gz`` and ``icu/icustays.csv.gz``, gzipped or not, of the full
database or of its open demo. An example is the first intensive-care stay of a hospital admission; hours count from its
``intime``. Source: Johnson et al. 2023, MIMIC-IV.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import polars as pl

from medfed.datasets.base import Dataset
from medfed.datasets.first_day import NUM_HOURS, FirstDay, FirstDayDataset, first_day
from medfed.datasets.tables import FileState, find_table, numbers, read_table, require_filled, require_values, times

STAYS, ADMISSIONS, PATIENTS = "icu/icustays.csv", "hosp/admissions.csv", "hosp/patients.csv"
EVENTS = "hosp/labevents.csv"
# fmt: off
ITEMS = {
    "50862": "alb", "50863": "alp", "50861": "alt", "50878": "ast", "50802": "be", "50882": "bicar", "50885": "bili",
    "50883": "bili_dir", "51144": "bnd", "51006": "bun", "50893": "ca", "50808": "cai", "50910": "ck", "50911": "ckmb",
    "50902": "cl", "50806": "cl", "50912": "crea", "50889": "crp", "51214": "fgn", "50931": "glu", "50809": "glu",
    "51222": "hgb", "50811": "hgb", "51237": "inr_pt", "50971": "k", "50822": "k", "50813": "lact", "51244": "lymph",
    "51248": "mch", "51249": "mchc", "51250": "mcv", "50814": "methb", "50960": "mg", "50983": "na", "50824": "na",
    "51256": "neut", "50818": "pco2", "50820": "ph", "50970": "phos", "51265": "plt", "50821": "po2", "51275": "ptt",
    "51003": "tnt", "51301": "wbc",
}
# fmt: on
"""``itemid`` in blood → variable of the modality ``labs``; two where the blood-gas device measures it as well."""


class MimicIV(FirstDayDataset):
    """MIMIC-IV's laboratory values; a row of the index is a hospital admission with intensive care."""

    name = "mimic-iv"
    stay, tables = "stay_id", (EVENTS, STAYS, ADMISSIONS, PATIENTS)
    marker = "hosp/admissions.csv*"
    simulator = "medfed.twins.icu_databases:write_mimic_iv_twin"

    def stays(self, root: Path) -> pl.DataFrame:
        """Join the tables of stays, admissions and patients."""
        people = read_table(root, PATIENTS, ("subject_id", "gender", "anchor_age", "anchor_year"))
        path = find_table(root, PATIENTS)
        people = people.with_columns(numbers(people[column], path) for column in ("anchor_age", "anchor_year"))
        admissions = read_table(root, ADMISSIONS, ("hadm_id", "hospital_expire_flag"))
        require_values(admissions, "hospital_expire_flag", ("0", "1"), find_table(root, ADMISSIONS))
        stays = _first_stays(root).join(admissions, on="hadm_id", how="left").join(people, on="subject_id", how="left")
        return stays.with_columns(
            example=pl.format("mimic-iv:{}", "stay_id"),
            patient=pl.format("mimic:{}", "subject_id"),
            site=pl.lit(self.card.sites[0]),
            mortality=pl.col("hospital_expire_flag").cast(pl.Int8),
            age=pl.col("anchor_age") + pl.col("intime").dt.year() - pl.col("anchor_year"),
            female=(pl.col("gender") == "F").cast(pl.Float64),
        )

    def series(self, root: Path) -> FirstDay:
        """Return the laboratory values of the first day of every stay."""
        return _labs(root, FileState.of(find_table(root, EVENTS)), FileState.of(find_table(root, STAYS)))


def _first_stays(root: Path) -> pl.DataFrame:
    columns, path = ("subject_id", "hadm_id", "stay_id", "intime"), find_table(root, STAYS)
    stays = read_table(root, STAYS, columns)
    require_filled(stays, columns, path)
    in_time = stays.with_columns(times(stays["intime"], path)).sort("intime", "stay_id")
    return in_time.unique("hadm_id", keep="first", maintain_order=True).sort("stay_id")


@lru_cache(maxsize=2)
def _labs(root: Path, events: FileState, stays: FileState) -> FirstDay:
    """Read the laboratory table once; the states are in the key so that a rewritten table is read anew."""
    admitted = _first_stays(root).select("subject_id", "intime", pl.col("stay_id").alias("stay"))
    wanted = pl.col("itemid").is_in(list(ITEMS)) & pl.col("subject_id").is_in(admitted["subject_id"].to_list())
    columns = ("subject_id", "itemid", "charttime", "valuenum", "valueuom")
    table = read_table(root, EVENTS, columns, wanted & pl.col("valuenum").is_not_null())
    table = table.with_columns(times(table["charttime"], events.path), value=numbers(table["valuenum"], events.path))
    events_of_stays = table.join(admitted, on="subject_id").select(
        "stay",
        "value",
        minute=(pl.col("charttime") - pl.col("intime")).dt.total_minutes(),
        variable=pl.col("itemid").replace_strict(ITEMS),
        unit="valueuom",
    )
    return first_day(events_of_stays.filter(pl.col("minute").is_between(0, 60 * NUM_HOURS)))


DATASETS: tuple[Dataset, ...] = (MimicIV(),)
