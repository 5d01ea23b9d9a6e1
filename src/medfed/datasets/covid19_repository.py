"""COVID-19 Image Repository: chest radiographs with laboratory values of patients with COVID-19 in one hospital.

Native layout: ``data.csv`` and ``png/<image_id>.png``. Offsets are days from the film. An example is a film; its
laboratory values are one hour of the modality ``covid-labs``, those measured no later than the day of the film.
Source: Winther et al. 2020, COVID-19 Image Repository, Hannover Medical School.

Deviation: ``inf`` and ``-inf`` (above or below what the assay can measure) count as not measured.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from medfed.datasets.base import Dataset, Raw, Record
from medfed.datasets.images import load_image
from medfed.datasets.tables import flag, numbers, read_csv, require_filled
from medfed.modalities.timeseries import COVID_LABS

TABLE = "data.csv"
IDS = ("patient_id", "image_id")
RADIOGRAPHS = ("CR", "DX")
"""DICOM modalities of plain films; other images are left out."""
COLUMNS = {variable: variable.replace("d_dimer", "d-dimer") for variable in COVID_LABS}
"""Variable of the modality → stem of its columns ``<stem>_offset`` and ``<stem>_val``."""
OUTCOMES = {"icu": "icu_admission_offset", "died": "death_offset"}
"""Target → the offset that is filled in if it happened."""


class Covid19Repository(Dataset):
    """COVID-19 Image Repository."""

    name = "covid19-repository"
    modalities = ("image", "covid-labs")
    targets = tuple(OUTCOMES)
    marker = "png/????????.png"
    simulator = "medfed.twins.covid19_repository:write_covid19_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """One row per radiograph with its laboratory values; ``icu`` and ``died`` are 1 if it happened, else 0."""
        path = root / TABLE
        labs = {lab: (pl.col(f"{stem}_offset"), pl.col(f"{stem}_val")) for lab, stem in COLUMNS.items()}
        measured = (*(f"{stem}_{kind}" for stem in COLUMNS.values() for kind in ("offset", "val")), *OUTCOMES.values())
        table = read_csv(path, (*IDS, "modality", *measured))
        require_filled(table, IDS, path)
        table = table.with_columns(numbers(table[column], path) for column in measured)
        films = table.filter(pl.col("modality").is_in(RADIOGRAPHS))
        return films.select(
            example=pl.format("hannover:{}", "image_id"),
            patient=pl.format("hannover:{}", "patient_id"),
            site=pl.lit(self.card.sites[0]),
            split=pl.lit(None, pl.Utf8),
            files=pl.concat_list(pl.format("png/{}.png", "image_id")),
            **{target: flag(pl.col(offset).is_not_null()) for target, offset in OUTCOMES.items()},
            **{lab: pl.when(offset <= 0).then(value) for lab, (offset, value) in labs.items()},
        )

    def load(self, root: Path, record: Record) -> Raw:
        """Return the film in [0, 1] and ``[1, laboratory value]``, NaN where not measured; left out if none was."""
        values = np.array([[record[variable] for variable in COVID_LABS]], np.float32)
        labs = {"covid-labs": values} if np.isfinite(values).any() else {}
        return {"image": load_image(root, record, TABLE), **labs}


DATASETS: tuple[Dataset, ...] = (Covid19Repository(),)
