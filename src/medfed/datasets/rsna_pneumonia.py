"""RSNA Pneumonia Detection Challenge (Shih 2019): FedKIM's task LOD, "Lung Opacity" against "Normal".

The third class, "No Lung Opacity / Not Normal", is left out, as in the paper. The class table repeats a patient per
box; the index holds each once, so that no copy lands on the other side of a split.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from medfed.core.errors import DataError
from medfed.datasets.base import Dataset, Raw, Record
from medfed.datasets.images import load_image
from medfed.datasets.tables import flag, nih_patient, read_csv, require_sources, require_values

TABLE = "stage_2_detailed_class_info.csv"
BOXES = "stage_2_train_labels.csv"
IMAGES = "stage_2_train_images"
POSITIVE, NEGATIVE, OTHER = "Lung Opacity", "Normal", "No Lung Opacity / Not Normal"


class RsnaPneumonia(Dataset):
    """DICOM files and a class table; optionally a ``source_map.csv`` (patientId, nih_patient_id) next to them."""

    name = "rsna-pneumonia"
    modalities = ("image",)
    targets = ("lung_opacity",)
    marker = TABLE
    simulator = "medfed.twins.chest_datasets:write_rsna_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """One row per image of the two classes used."""
        table = _classes(root / TABLE)
        sources, patient = root / "source_map.csv", pl.lit("rsna:") + pl.col("patientId")
        if sources.is_file():
            numbers = read_csv(sources, ("patientId", "nih_patient_id"))
            require_sources(table["patientId"], numbers["patientId"], sources)
            table = table.join(numbers.unique("patientId"), on="patientId", how="left", maintain_order="left")
            patient = nih_patient(pl.col("nih_patient_id"))
        return table.select(
            example="patientId",
            patient=patient,
            site=pl.lit(self.card.sites[0]),
            split=pl.lit(None, pl.Utf8),
            files=pl.concat_list(pl.lit(f"{IMAGES}/") + pl.col("patientId") + ".dcm"),
            lung_opacity=flag(pl.col("class") == POSITIVE),
        )

    def load(self, root: Path, record: Record) -> Raw:
        """Decode the DICOM file to [0, 1]."""
        return {"image": load_image(root, record, TABLE)}


def _classes(path: Path) -> pl.DataFrame:
    """Read the class table, once per patient, without the third class."""
    table = read_csv(path, ("patientId", "class"))
    require_values(table, "class", (POSITIVE, NEGATIVE, OTHER), path)
    once = table.unique(["patientId", "class"], keep="first", maintain_order=True)
    twice = once.filter(once["patientId"].is_duplicated())
    if not twice.is_empty():
        patient = twice["patientId"][0]
        names = " and ".join(map(repr, twice.filter(pl.col("patientId") == patient)["class"]))
        hint = "download the table again; one patient has one class"
        raise DataError(f"patientId {patient!r} has the classes {names}", where=path, hint=hint)
    return once.filter(pl.col("class") != OTHER)


DATASETS: tuple[Dataset, ...] = (RsnaPneumonia(),)
