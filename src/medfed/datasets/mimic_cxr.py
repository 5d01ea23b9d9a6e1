"""MIMIC-CXR-JPG: chest radiographs with their free-text reports (Med-MMFL: 14-label classification).

Native layout: ``mimic-cxr-2.0.0-{split,chexpert,metadata}.csv.gz``, films ``files/p10/p10000032/s50414267/<dicom>.jpg``
and MIMIC-CXR's reports ``files/p10/p10000032/s50414267.txt``, in the same folder or under ``mimic-cxr-reports/``.
An example is a study with its frontal film and its report. The official split is kept.

Of a report only FINDINGS and IMPRESSION (or CONCLUSION) are kept. History and technique give the reason for the film,
and names of staff stand below. Headings are capitals at the start of a line. A report without any gives its last
paragraph, as in the section tool of Johnson et al.

Source: Johnson et al. 2019, MIMIC-CXR and MIMIC-CXR-JPG.

Deviation: the 14 labels are 1 or 0, uncertain (−1) is unknown and left out of loss and metrics. A finding that the
    report does not mention (an empty cell) is absent, as in CheXpert's baselines.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl

from medfed.core.errors import DataError
from medfed.datasets.base import AGAIN, Dataset, Raw, Record, require
from medfed.datasets.images import read_grey
from medfed.datasets.questions import text_bytes
from medfed.datasets.tables import (
    ABSENT,
    CHEXPERT_LABELS,
    NOT_MENTIONED,
    PRESENT,
    UNCERTAIN,
    chexpert_labels,
    find_table,
    read_table,
    require_cells,
    require_values,
)

SPLIT, LABELS, METADATA = (f"mimic-cxr-2.0.0-{table}.csv" for table in ("split", "chexpert", "metadata"))
SPLITS = {"train": "train", "validate": "development", "test": "test"}
FRONTAL = {"PA": 0, "AP": 1}
"""Order of preference among the views of a study; every other view comes after."""
VALUE = {PRESENT: 1, ABSENT: 0, NOT_MENTIONED: 0, UNCERTAIN: None}
REPORTS = "mimic-cxr-reports"
IDS = ("subject_id", "study_id")
HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ,/()&-]{2,60}):", re.MULTILINE)
SECTIONS = ("FINDINGS", "IMPRESSION", "CONCLUSION")


class MimicCxr(Dataset):
    """MIMIC-CXR-JPG with the reports of MIMIC-CXR."""

    name = "mimic-cxr"
    modalities = ("image", "report")
    targets = tuple(CHEXPERT_LABELS)
    marker = f"{SPLIT}*"
    simulator = "medfed.twins.mimic_cxr:write_mimic_cxr_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """One row per study of the split table, with its first frontal film; ``files`` are the film and the report."""
        films = _films(root).sort("study_id", "rank", "dicom_id")
        studies = films.unique("study_id", keep="first", maintain_order=True)
        table = studies.join(_labels(root), on="study_id", how="left")
        subject, study = pl.col("subject_id"), pl.col("study_id")
        folder = pl.format("files/p{}/p{}/s{}", subject.str.slice(0, 2), subject, study)
        reports = pl.lit(f"{REPORTS}/" if (root / REPORTS).is_dir() else "")
        film, report = pl.format("{}/{}.jpg", folder, pl.col("dicom_id")), pl.format("{}{}.txt", reports, folder)
        return table.select(
            pl.format("mimic-cxr:s{}", study).alias("example"),
            pl.format("mimic:{}", subject).alias("patient"),
            pl.lit(self.card.sites[0]).alias("site"),
            pl.col("split").replace_strict(SPLITS),
            pl.concat_list(film, report).alias("files"),
            *CHEXPERT_LABELS,
        )

    def load(self, root: Path, record: Record) -> Raw:
        """Return the film in [0, 1] and the UTF-8 bytes of the report's findings; one of them may be absent."""
        film, report = (root / file for file in record["files"])
        arrays: dict[str, np.ndarray] = {}
        if film.is_file():
            arrays["image"] = read_grey(film)
        if report.is_file() and (text := _read_report(report)):
            arrays["report"] = text_bytes(text)
        what = f"neither the film nor a report of study {record['example']} is there"
        require(arrays, what, film, "complete the download, or leave such studies out with --skip-bad")
        return arrays


def _films(root: Path) -> pl.DataFrame:
    """One row per film: its ids, split, and rank by view."""
    path = find_table(root, SPLIT)
    table = read_table(root, SPLIT, ("dicom_id", *IDS, "split"))
    require_values(table, "split", tuple(SPLITS), path)
    for column in ("dicom_id", *IDS):
        pattern = r"^\d+$" if column in IDS else r"^[0-9A-Za-z-]+$"
        require_cells(table[column], table[column].str.contains(pattern), "is not an id", path, AGAIN)
    views = read_table(root, METADATA, ("dicom_id", "ViewPosition")).unique("dicom_id", keep="first")
    rank = pl.col("ViewPosition").replace_strict(FRONTAL, default=len(FRONTAL), return_dtype=pl.Int8)
    return table.join(views, on="dicom_id", how="left").with_columns(rank.fill_null(len(FRONTAL)).alias("rank"))


def _labels(root: Path) -> pl.DataFrame:
    """One row per study: 1, 0, or null where the label is uncertain."""
    path, columns = find_table(root, LABELS), CHEXPERT_LABELS.values()
    table = read_table(root, LABELS, ("study_id", *columns))
    require(table["study_id"].is_unique().all(), "a study is listed twice", path, AGAIN)
    labels = pl.col(*columns).replace_strict(VALUE, return_dtype=pl.Int8)
    names = {column: name for name, column in CHEXPERT_LABELS.items()}
    return chexpert_labels(table, columns, path).select("study_id", labels).rename(names)


def _read_report(path: Path) -> str:
    """Return the findings and the impression of a report file as one line; empty if it says nothing.

    Raises DataError if the file is not UTF-8 text. The message quotes nothing of it.
    """
    try:
        return sections(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        byte = error.start
    except OSError as error:
        raise DataError(f"the report cannot be read ({error.strerror})", where=path, hint="check the file") from None
    raise DataError(f"the report is not UTF-8 text (byte {byte})", where=path, hint=AGAIN)


def sections(text: str) -> str:
    """Return the wanted sections of ``text``, in order, as one line; without any, its last paragraph."""
    headings = list(HEADING.finditer(text))
    kept = []
    for number, heading in enumerate(headings, start=1):
        end = headings[number].start() if number < len(headings) else len(text)
        if any(word in heading.group(1) for word in SECTIONS):
            kept.append(text[heading.end() : end])
    if not kept:
        body = text[headings[-1].end() :] if headings else text
        kept = [paragraph for paragraph in re.split(r"\n\s*\n", body) if paragraph.strip()][-1:]
    return " ".join(" ".join(kept).split())


DATASETS: tuple[Dataset, ...] = (MimicCxr(),)
