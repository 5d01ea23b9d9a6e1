"""MIMIC-CXR-JPG: chest radiographs with their free-text reports (Med-MMFL: 14-label classification).

Native layout: ``mimic-cxr-2.0.0-{split,chexpert,metadata}.csv.gz``, films ``files/p10/p10000032/s50414267/<dicom>.jpg``
and MIMIC-CXR's reports ``files/p10/p10000032/s50414267.txt``, beside the films or under ``mimic-cxr-reports/``.
An example is a study with its frontal film and its report. The official split is kept.
Source: Johnson et al. 2019, MIMIC-CXR-JPG.

Deviation: the 14 labels are 1 or 0, uncertain (−1) is unknown and left out of loss and metrics; a finding the report
does not mention (an empty cell) is absent, as in CheXpert's own baselines.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from medfed.core.errors import DataError
from medfed.datasets.base import Card, Dataset, Record
from medfed.datasets.formats import find_table, read_table
from medfed.datasets.images import read_grey
from medfed.datasets.labels import CHEXPERT_LABELS, read_report, require_values

SPLIT, LABELS, METADATA = (f"mimic-cxr-2.0.0-{table}.csv" for table in ("split", "chexpert", "metadata"))
SPLITS = {"train": "train", "validate": "development", "test": "test"}
FRONTAL = {"PA": 0, "AP": 1}
"""Order of preference among the views of a study; every other view comes after."""
OTHER_VIEW = 2
VALUES = ("1.0", "0.0", "-1.0", "")
REPORTS = "mimic-cxr-reports"
IDS = ("subject_id", "study_id")


class MimicCxr(Dataset):
    """MIMIC-CXR-JPG with the reports of MIMIC-CXR."""

    name: ClassVar[str] = "mimic-cxr"
    card: ClassVar[Card] = Card(
        title="MIMIC-CXR-JPG",
        version="2.0.0/2.1.0: 377,110 images of 227,835 studies of 65,379 patients",
        licence="PhysioNet Credentialed Health Data License 1.5.0",
        access="https://physionet.org/content/mimic-cxr-jpg/ (reports: https://physionet.org/content/mimic-cxr/)",
        citation="Johnson et al., Scientific Data 6:317 (2019); arXiv:1901.07042",
        sites=("Beth Israel Deaconess Medical Center",),
        note=(
            "The labels were read off the reports by rules, so a model that sees the report sees the labels' source: "
            "scores with the report measure reading, not diagnosis."
        ),
    )
    modalities: ClassVar[tuple[str, ...]] = ("image", "report")
    targets: ClassVar[tuple[str, ...]] = tuple(CHEXPERT_LABELS)
    marker: ClassVar[str] = f"{SPLIT}*"
    simulator: ClassVar[str] = "medfed.twins.mimic_cxr:write_mimic_cxr_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """One row per study of the split table, with its first frontal film; ``files`` are the film and the report.

        Raises:
            DataError: a table is missing, damaged or lacks a column, or a split, a label or an id is unheard of.
        """
        films = _films(root)
        studies = films.sort("study_id", "rank", "dicom_id").unique("study_id", keep="first", maintain_order=True)
        table = studies.join(_labels(root), on="study_id", how="left")
        subject, study = pl.col("subject_id"), pl.col("study_id")
        folder = pl.format("files/p{}/p{}/s{}", subject.str.slice(0, 2), subject, study)
        reports = f"{REPORTS}/" if (root / REPORTS).is_dir() else ""
        return table.select(
            pl.format("mimic-cxr:s{}", study).alias("example"),
            pl.format("mimic:{}", subject).alias("patient"),
            pl.lit(self.card.sites[0]).alias("site"),
            pl.col("split").replace_strict(SPLITS),
            pl.concat_list(
                pl.format("{}/{}.jpg", folder, pl.col("dicom_id")), pl.format("{}{}.txt", pl.lit(reports), folder)
            ).alias("files"),
            *CHEXPERT_LABELS,
        )

    def load(self, root: Path, record: Record) -> dict[str, np.ndarray]:
        """Return the film in [0, 1] and the UTF-8 bytes of the report's findings; either may be absent.

        Raises:
            DataError: a file is damaged, or both are missing.
        """
        film, report = (root / file for file in record["files"])
        found: dict[str, np.ndarray] = {}
        if film.is_file():
            found["image"] = read_grey(film)
        if report.is_file() and (text := read_report(report)):
            found["report"] = np.frombuffer(text.encode(), np.uint8)
        if not found:
            raise DataError(
                f"neither the film nor a report of study {record['example']} is there",
                where=film,
                hint="complete the download, or leave such studies out with --skip-bad",
            )
        return found


def _films(root: Path) -> pl.DataFrame:
    """One row per film: its ids, split, and rank by view."""
    path = find_table(root, SPLIT)
    table = read_table(root, SPLIT, ("dicom_id", *IDS, "split"))
    require_values(table, "split", tuple(SPLITS), path)
    for column in ("dicom_id", *IDS):
        pattern = r"^\d+$" if column in IDS else r"^[0-9A-Za-z-]+$"
        strange = ~table[column].fill_null("").str.contains(pattern)
        if strange.any():
            row = int(strange.arg_max() or 0)
            raise DataError(f"column {column!r}, line {row + 2}: not an id", where=path, hint="download the file again")
    views = read_table(root, METADATA, ("dicom_id", "ViewPosition")).unique("dicom_id", keep="first")
    rank = pl.col("ViewPosition").replace_strict(FRONTAL, default=OTHER_VIEW, return_dtype=pl.Int8)
    return table.join(views, on="dicom_id", how="left").with_columns(rank.fill_null(OTHER_VIEW).alias("rank"))


def _labels(root: Path) -> pl.DataFrame:
    """One row per study: 1, 0, or null where the label is uncertain."""
    path = find_table(root, LABELS)
    table = read_table(root, LABELS, ("study_id", *CHEXPERT_LABELS.values()))
    if table["study_id"].is_duplicated().any():
        raise DataError("a study is listed twice", where=path, hint="download the file again")
    table = table.with_columns(
        pl.col(column).fill_null("").str.replace(r"^(-?[01])$", "${1}.0") for column in CHEXPERT_LABELS.values()
    )
    for column in CHEXPERT_LABELS.values():
        require_values(table, column, VALUES, path)
    value = {"1.0": 1, "0.0": 0, "": 0, "-1.0": None}
    return table.select(
        "study_id",
        *(
            pl.col(column).replace_strict(value, return_dtype=pl.Int8).alias(name)
            for name, column in CHEXPERT_LABELS.items()
        ),
    )


DATASETS: tuple[Dataset, ...] = (MimicCxr(),)
