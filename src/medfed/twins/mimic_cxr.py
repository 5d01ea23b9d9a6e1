"""The synthetic twin of MIMIC-CXR-JPG: chest phantoms, dictated reports and the official tables, gzipped.

Fractures, lesions, pneumothorax and devices are in the reports only: the phantom does not draw them, as they would be
invisible in a small image. No film has the label Pleural Other, so that one label is never defined in a small twin.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from medfed.core.rng import numpy_rng
from medfed.datasets.images import write_grey
from medfed.datasets.tables import CHEXPERT_LABELS
from medfed.study.data import TwinSpec
from medfed.twins.chest_cohorts import Cohort, Film, draw_films, has_opacity, inpatient
from medfed.twins.chest_words import ABSENT, PHRASES, PRESENT, UNCERTAIN, dictate

COHORT = Cohort("mimic-cxr", inpatient, second_visits=0.25)
INCIDENTAL = {"fracture": 0.06, "lung_lesion": 0.08, "pneumothorax": 0.07, "support_devices": 0.3}
"""Findings that the phantom does not draw: chance that a film has one."""
SHARES = {"train": 0.75, "validate": 0.1, "test": 0.15}
SHARE_UNCERTAIN, SHARE_UNREPORTED, SHARE_LATERAL = 0.04, 0.03, 0.3
FIRST_SUBJECT, FIRST_STUDY = 10_000_000, 50_000_000


def write_mimic_cxr_twin(root: Path, spec: TwinSpec) -> None:
    """Write films, reports and tables; equal specs give equal bytes. A harder twin mentions less."""
    tables: dict[str, list[dict[str, str]]] = {"split": [], "chexpert": [], "metadata": []}
    for film in draw_films(COHORT, spec):
        rng = numpy_rng(spec.seed, "mimic-cxr", film.patient, film.visit)
        subject, study = str(FIRST_SUBJECT + film.patient), str(FIRST_STUDY + 2 * film.patient + film.visit)
        split = _split(spec.seed, film.patient)
        folder = root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}"
        folder.mkdir(parents=True)
        views = [("AP" if film.view == "AP" else "PA", film.grey)]
        if rng.random() < SHARE_LATERAL:
            views.insert(0, ("LATERAL", film.grey[::-1]))  # no lateral phantom: it is never read
        for number, (view, grey) in enumerate(views):
            dicom = f"{rng.integers(16**8):08x}-{study}-{number}"
            write_grey(folder / f"{dicom}.jpg", grey)
            tables["split"].append({"dicom_id": dicom, "study_id": study, "subject_id": subject, "split": split})
            tables["metadata"].append(
                {"dicom_id": dicom, "subject_id": subject, "study_id": study, "ViewPosition": view}
            )
        states = _states(film, rng)
        if rng.random() >= SHARE_UNREPORTED:
            text = dictate(states, 0.3 * spec.difficulty, rng)
            folder.with_suffix(".txt").write_text(text, encoding="utf-8")
        tables["chexpert"].append({"subject_id": subject, "study_id": study, **_row(states, rng)})
    for name, rows in tables.items():
        _write_gzip(root / f"mimic-cxr-2.0.0-{name}.csv.gz", pl.DataFrame(rows))


def _split(seed: int, patient: int) -> str:
    return str(numpy_rng(seed, "mimic-cxr split", patient).choice(list(SHARES), p=list(SHARES.values())))


def _states(film: Film, rng: np.random.Generator) -> dict[str, str]:
    """Return what the reader thinks of every finding that can be dictated."""
    findings = film.findings
    present = {
        "atelectasis": findings.atelectasis > 0,
        "cardiomegaly": findings.cardiomegaly > 0,
        "consolidation": findings.consolidation > 0,
        "edema": findings.oedema > 0,
        "enlarged_cardiomediastinum": max(findings.wide_mediastinum, findings.cardiomegaly) > 0,
        "lung_opacity": has_opacity(findings),
        "pleural_effusion": findings.effusion > 0,
        "pneumonia": findings.consolidation > 0 and rng.random() < 0.7,
        **{name: rng.random() < chance for name, chance in INCIDENTAL.items()},
    }
    states = {}
    for finding in PHRASES:
        doubtful = rng.random() < SHARE_UNCERTAIN
        states[finding] = UNCERTAIN if doubtful else PRESENT if present[finding] else ABSENT
    return states


def _row(states: Mapping[str, str], rng: np.random.Generator) -> dict[str, str]:
    """Return the row of the label table: half of the absent findings are 0.0, half are empty cells."""
    healthy = PRESENT not in {state for finding, state in states.items() if finding != "support_devices"}
    known = {**states, "no_finding": PRESENT if healthy else ""}
    cells = {name: "" if known.get(name) == ABSENT and rng.random() < 0.5 else known.get(name, "") for name in known}
    return {column: cells.get(name, "") for name, column in CHEXPERT_LABELS.items()}


def _write_gzip(path: Path, table: pl.DataFrame) -> None:
    """Write a gzipped CSV without a time stamp, so that equal tables are equal bytes."""
    path.write_bytes(gzip.compress(table.write_csv().encode(), mtime=0))
