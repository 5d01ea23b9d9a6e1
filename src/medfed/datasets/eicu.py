"""eICU: death in hospital from the laboratory values of the first 24 hours in intensive care, over many hospitals.

Native layout: ``{patient,lab}.csv.gz``, gzipped or not, of the full database or of its open demo. An example is the
first unit stay of a hospital stay; offsets are minutes since admission to the unit. A hospital is a site, and most are
small. Source: Pollard et al. 2018, the eICU Collaborative Research Database.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import polars as pl

from medfed.datasets.base import Dataset
from medfed.datasets.first_day import NUM_HOURS, FirstDay, FirstDayDataset, first_day
from medfed.datasets.tables import FileState, find_table, numbers, read_table, require_filled, require_values

STAYS, EVENTS = "patient.csv", "lab.csv"
UNIT_STAY, HOSPITAL_STAY = "patientunitstayid", "patienthealthsystemstayid"
IDS = (UNIT_STAY, HOSPITAL_STAY, "uniquepid", "hospitalid")
OUTCOMES = {"Expired": 1, "Alive": 0, "": None}
OLDEST, AGE_OF_OLDEST = "> 89", "90"
"""Ages above 89 are published as "> 89"; they count as 90."""
# fmt: off
LABNAMES = {
    "albumin": "alb", "alkaline phos.": "alp", "ALT (SGPT)": "alt", "AST (SGOT)": "ast", "Base Excess": "be",
    "bicarbonate": "bicar", "HCO3": "bicar", "total bilirubin": "bili", "direct bilirubin": "bili_dir", "-bands": "bnd",
    "BUN": "bun", "calcium": "ca", "ionized calcium": "cai", "CPK": "ck", "CPK-MB": "ckmb", "chloride": "cl",
    "creatinine": "crea", "CRP": "crp", "fibrinogen": "fgn", "glucose": "glu", "bedside glucose": "glu", "Hgb": "hgb",
    "PT - INR": "inr_pt", "potassium": "k", "lactate": "lact", "-lymphs": "lymph", "MCH": "mch", "MCHC": "mchc",
    "MCV": "mcv", "Methemoglobin": "methb", "magnesium": "mg", "sodium": "na", "-polys": "neut", "paCO2": "pco2",
    "pH": "ph", "phosphate": "phos", "platelets x 1000": "plt", "paO2": "po2", "PTT": "ptt", "troponin - T": "tnt",
    "WBC x 1000": "wbc",
}
# fmt: on
"""``labname`` → variable of the modality ``labs``."""


class Eicu(FirstDayDataset):
    """eICU's laboratory values; a row of the index is a hospital stay."""

    name = "eicu"
    stay, tables = UNIT_STAY, (EVENTS, STAYS)
    marker = "patient.csv*"
    simulator = "medfed.twins.icu_databases:write_eicu_twin"

    def stays(self, root: Path) -> pl.DataFrame:
        """Read the table of stays."""
        path = find_table(root, STAYS)
        table = read_table(root, STAYS, (*IDS, "gender", "age", "hospitaldischargestatus", "unitvisitnumber"))
        require_filled(table, IDS, path)
        age = pl.col("age").str.strip_chars().replace(OLDEST, AGE_OF_OLDEST)
        table = table.with_columns(pl.col("hospitaldischargestatus").fill_null(""), age)
        require_values(table, "hospitaldischargestatus", tuple(OUTCOMES), path)
        table = table.with_columns(numbers(table[column], path) for column in ("age", "unitvisitnumber"))
        in_order = table.sort(HOSPITAL_STAY, "unitvisitnumber", UNIT_STAY)
        stays = in_order.unique(HOSPITAL_STAY, keep="first", maintain_order=True)
        return stays.with_columns(
            example=pl.format("eicu:{}", UNIT_STAY),
            patient=pl.format("eicu:{}", "uniquepid"),
            site="hospitalid",
            mortality=pl.col("hospitaldischargestatus").replace_strict(OUTCOMES, return_dtype=pl.Int8),
            female=pl.col("gender").replace_strict({"Female": 1.0, "Male": 0.0}, default=None, return_dtype=pl.Float64),
        )

    def series(self, root: Path) -> FirstDay:
        """Return the laboratory values of the first day of every stay."""
        return _labs(root, FileState.of(find_table(root, EVENTS)))


@lru_cache(maxsize=2)
def _labs(root: Path, events: FileState) -> FirstDay:
    """Read the laboratory table once; the state is in the key so that a rewritten table is read anew."""
    columns = (UNIT_STAY, "labresultoffset", "labname", "labresult", "labmeasurenamesystem")
    wanted = pl.col("labname").is_in(list(LABNAMES)) & pl.col("labresult").is_not_null()
    table = read_table(root, EVENTS, columns, wanted)
    table = table.select(
        minute=numbers(table["labresultoffset"], events.path),
        value=numbers(table["labresult"], events.path),
        variable=pl.col("labname").replace_strict(LABNAMES),
        stay=UNIT_STAY,
        unit="labmeasurenamesystem",
    )
    return first_day(table.filter(pl.col("minute").is_between(0, 60 * NUM_HOURS)))


DATASETS: tuple[Dataset, ...] = (Eicu(),)
