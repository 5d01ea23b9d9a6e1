"""COVID-19 Radiography Database (Chowdhury 2020, Rahman 2021): FedKIM's task CD, COVID against Normal by folder.

The release also holds ``Lung_Opacity``, ``Viral Pneumonia``, ``masks`` and metadata sheets; the task does not use them.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from medfed.datasets.base import Dataset, Raw, Record, require
from medfed.datasets.images import load_image
from medfed.datasets.tables import flag, nih_patient, read_csv, require_sources, require_values

FOLDER = "COVID-19_Radiography_Dataset"
CLASSES = ("COVID", "Normal")
SOURCES = {"ChestX-ray14": "nih", "covid19-image-repository": "hannover"}
"""First word of a source map's ``source`` → the hospital its patient ids belong to."""


class CovidRadiography(Dataset):
    """PNG files in one folder per class; optionally a ``source_map.csv`` (file, source, patient_id) next to them."""

    name = "covid-radiography"
    modalities = ("image",)
    targets = ("covid",)
    marker = f"{FOLDER}/COVID"
    simulator = "medfed.twins.chest_datasets:write_covid_radiography_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """One row per image of the class folders; with a source map one per row of it, so that absent files show."""
        files = pl.Series("file", [file for name in CLASSES for file in _images(root, name)], pl.Utf8)
        sources, stem = root / "source_map.csv", pl.col("file").str.split("/").list.last().str.strip_suffix(".png")
        unmapped = {"patient": pl.lit("covid-radiography:") + stem, "site": pl.lit(None, pl.Utf8)}
        table = _mapped(files, sources) if sources.is_file() else files.to_frame().with_columns(**unmapped)
        return table.sort("file").select(
            example=pl.col("file").str.strip_suffix(".png"),
            patient="patient",
            site="site",
            split=pl.lit(None, pl.Utf8),
            files=pl.concat_list(pl.lit(f"{FOLDER}/") + pl.col("file")),
            covid=flag(pl.col("file").str.starts_with("COVID/")),
        )

    def load(self, root: Path, record: Record) -> Raw:
        """Decode the image to [0, 1]."""
        return {"image": load_image(root, record, "source_map.csv")}


def _images(root: Path, name: str) -> list[str]:
    folder = root / FOLDER / name / "images"
    hint = f"complete the download; expected {FOLDER}/{{{','.join(CLASSES)}}}/images/*.png"
    require(folder.is_dir(), "the folder is missing", folder, hint)
    return [f"{name}/images/{path.name}" for path in sorted(folder.glob("*.png"))]


def _mapped(files: pl.Series, path: Path) -> pl.DataFrame:
    sources = read_csv(path, ("file", "source", "patient_id")).with_columns(
        pl.col("source").str.split(" ").list.first(), folder=pl.col("file").str.split("/").list.first()
    )
    require_values(sources, "source", SOURCES, path)
    require_values(sources, "folder", CLASSES, path)
    require_sources(files, sources["file"], path)
    site, number = pl.col("source").replace_strict(SOURCES), pl.col("patient_id")
    patient = pl.when(site == "nih").then(nih_patient(number)).otherwise(site + ":" + number)
    return sources.with_columns(patient=patient, site=site)


DATASETS: tuple[Dataset, ...] = (CovidRadiography(),)
