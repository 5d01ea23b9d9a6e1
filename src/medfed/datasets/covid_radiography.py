"""COVID-19 Radiography Database (Chowdhury 2020, Rahman 2021): FedKIM's task CD, COVID against Normal by folder.

The release also holds ``Lung_Opacity``, ``Viral Pneumonia``, ``masks`` and metadata sheets; the task does not use them.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from medfed.datasets.base import Card, Dataset, Record, TwinSpec, read_csv
from medfed.datasets.images import load_image
from medfed.datasets.labels import nih_patient, require_values
from medfed.datasets.twins.chest import Film, write_grey
from medfed.datasets.twins.chest_cohorts import COVID, draw_films
from medfed.errors import DataError

FOLDER = "COVID-19_Radiography_Dataset"
CLASSES = {"COVID": 1, "Normal": 0}
SOURCES = {"ChestX-ray14": "nih", "covid19-image-repository": "hannover"}
"""First word of a source map's ``source`` → the population its patient ids belong to."""


class CovidRadiography(Dataset):
    """PNG files in one folder per class."""

    name: ClassVar[str] = "covid-radiography"
    card: ClassVar[Card] = Card(
        title="COVID-19 Radiography Database",
        version="5 (3,616 COVID, 10,192 Normal)",
        licence="see the release: its images come from several sources, each with its own terms",
        access="https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database",
        citation="Chowdhury et al., IEEE Access 8:132665 (2020); Rahman et al., Comput Biol Med 132:104319 (2021)",
        note="Publishes no patient ids: each image counts as a patient, so one person may stand on both sides of a split, "
        "unless a source_map.csv (file, source, patient_id) lies beside the folder. COVID and Normal images come from "
        "different hospitals, so part of any accuracy is telling hospitals apart.",
    )
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    targets: ClassVar[tuple[str, ...]] = ("covid",)
    marker: ClassVar[str] = f"{FOLDER}/COVID"

    def index(self, root: Path) -> pl.DataFrame:
        """One row per image of ``COVID/images`` and ``Normal/images``, and per row of the source map."""
        found = [file for name in CLASSES for file in _images(root, name)]
        table = pl.DataFrame({"file": found}, schema={"file": pl.Utf8}).with_columns(
            patient=pl.lit("covid-radiography:") + pl.col("file").str.split("/").list.last().str.strip_suffix(".png"),
            site=pl.lit(None, pl.Utf8),
        )
        if (root / "source_map.csv").is_file():
            table = _with_sources(table, root / "source_map.csv")
        folder = pl.col("file").str.split("/").list.first()
        return table.select(
            example=pl.col("file").str.strip_suffix(".png"),
            patient="patient",
            site="site",
            split=pl.lit(None, pl.Utf8),
            files=pl.concat_list(pl.lit(f"{FOLDER}/") + pl.col("file")),
            covid=folder.replace_strict(CLASSES, return_dtype=pl.Int8),
        )

    def load(self, root: Path, record: Record) -> dict[str, np.ndarray]:
        """Decode the image to [0, 1]."""
        return {"image": load_image(root, record, "source_map.csv")}

    def synthesize(self, root: Path, spec: TwinSpec) -> None:
        """Write phantoms, numbered by class as in the release."""
        for name in CLASSES:
            (root / FOLDER / name / "images").mkdir(parents=True)
        numbers = dict.fromkeys(CLASSES, 0)
        for film in draw_films(COVID, spec):
            name = _class(film)
            numbers[name] += 1
            write_grey(root / FOLDER / name / "images" / f"{name}-{numbers[name]}.png", film.grey)


def _class(film: Film) -> str:
    return "COVID" if film.findings.ground_glass > 0 else "Normal"


def _images(root: Path, name: str) -> list[str]:
    folder = root / FOLDER / name / "images"
    if not folder.is_dir():
        raise DataError(
            "the folder is missing", where=folder, hint=f"expected {FOLDER}/{{COVID,Normal}}/images/*.png: complete the download"
        )
    return [f"{name}/images/{path.name}" for path in sorted(folder.glob("*.png"))]


def _with_sources(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Take patient and site from the map; rows it lists for absent files stay, so that loading reports them."""
    sources = read_csv(path, ("file", "source", "patient_id"))
    population = sources["source"].str.split(" ").list.first().alias("source")
    require_values(population.to_frame(), "source", SOURCES, path)
    folders = sources["file"].str.split("/").list.first().alias("file")
    require_values(folders.to_frame(), "file", CLASSES, path)
    unknown = table.filter(~pl.col("file").is_in(sources["file"].to_list()))
    if not unknown.is_empty():
        raise DataError(
            f"image {unknown['file'][0]!r} has no row", where=path, hint="add its row, or remove the map to treat images as patients"
        )
    site = pl.col("site")
    return sources.select("file", site=population.replace_strict(SOURCES)).with_columns(
        patient=pl.when(site == "nih")
        .then(nih_patient(sources["patient_id"].to_frame().select(pl.first()).to_series()))
        .otherwise(site + ":" + sources["patient_id"])
    )
