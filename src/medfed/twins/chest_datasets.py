"""The synthetic twins of the datasets that hold one chest film an example: phantoms in their native layouts."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import polars as pl

from medfed.core.rng import numpy_rng
from medfed.datasets import chestxray14, covid_radiography, medmnist, rsna_pneumonia
from medfed.datasets.images import eight_bits, write_grey
from medfed.study.data import TwinSpec
from medfed.twins.chest_anatomy import Findings
from medfed.twins.chest_cohorts import CHEXPERT, COVID, NIH, PAEDIATRIC, RSNA, Film, draw_films, has_opacity
from medfed.twins.chest_dicom import DicomStyle, opacity_boxes, write_dicom


def write_chestxray14_twin(root: Path, spec: TwinSpec) -> None:
    """Write phantoms, the table and the official lists. Half of the findings have no phantom and never occur."""
    (root / "images").mkdir(parents=True)
    rows, lists = [], dict.fromkeys(chestxray14.LISTS, "")
    for film in draw_films(NIH, spec):
        name = f"{film.patient:08d}_{film.visit:03d}.png"
        write_grey(root / "images" / name, film.grey)
        rows.append(_nih_row(film, name))
        tested = numpy_rng(spec.seed, "chestxray14", film.patient).random() < 0.22  # the official share
        lists["test_list.txt" if tested else "train_val_list.txt"] += f"{name}\n"
    pl.DataFrame(rows).write_csv(root / chestxray14.TABLE)
    for file, text in lists.items():
        (root / file).write_text(text, encoding="utf-8")


def _nih_row(film: Film, name: str) -> dict[str, str | int | float]:
    """Return a row of the table, in the release's columns."""
    labels = _nih_labels(film.findings)
    size = {"OriginalImage[Width": film.grey.shape[1], "Height]": film.grey.shape[0]}
    return {
        "Image Index": name,
        "Finding Labels": "|".join(labels) or chestxray14.NO_FINDING,
        "Follow-up #": film.visit,
        "Patient ID": film.patient,
        "Patient Age": film.age,
        "Patient Gender": film.sex,
        "View Position": film.view,
        **size,
        "OriginalImagePixelSpacing[x": 0.168,
        "y]": 0.168,
    }


def _nih_labels(findings: Findings) -> list[str]:
    """Name findings as the NIH does: a dense lobe is consolidation, a faint one infiltration, both pneumonia."""
    present = {
        "Atelectasis": findings.atelectasis > 0,
        "Cardiomegaly": findings.cardiomegaly > 0,
        "Consolidation": findings.consolidation > 0.5,
        "Edema": findings.oedema > 0,
        "Effusion": findings.effusion > 0,
        "Infiltration": 0 < findings.consolidation <= 0.5,
        "Pneumonia": findings.consolidation > 0,
    }
    return [label for label, value in present.items() if value]


def write_chexpert_twin(root: Path, spec: TwinSpec) -> None:
    """Write phantoms and ``valid.csv`` with its 14 finding columns; there is no ``train.csv``."""
    rows = []
    for film in draw_films(CHEXPERT, spec):
        folder = f"valid/patient{64540 + film.patient}/study{film.visit + 1}"
        (root / folder).mkdir(parents=True)
        write_grey(root / folder / "view1_frontal.jpg", film.grey)
        rows.append({"Path": f"CheXpert-v1.0-small/{folder}/view1_frontal.jpg", **_chexpert_row(film)})
    pl.DataFrame(rows).write_csv(root / "valid.csv", float_precision=1)


def _chexpert_row(film: Film) -> dict[str, str | int | float]:
    """Return a row of the table. As CheXpert defines it, a large heart is an enlarged cardiomediastinum too."""
    findings = film.findings
    present: dict[str, bool] = {
        "No Finding": findings == Findings(),
        "Enlarged Cardiomediastinum": max(findings.wide_mediastinum, findings.cardiomegaly) > 0,
        "Cardiomegaly": findings.cardiomegaly > 0,
        "Lung Opacity": has_opacity(findings),
        "Lung Lesion": False,
        "Edema": findings.oedema > 0,
        "Consolidation": findings.consolidation > 0,
        "Pneumonia": findings.consolidation > 0,
        "Atelectasis": findings.atelectasis > 0,
        "Pneumothorax": False,
        "Pleural Effusion": findings.effusion > 0,
        "Pleural Other": False,
        "Fracture": False,
        "Support Devices": False,
    }
    sex = {"F": "Female", "M": "Male"}[film.sex]
    head: dict[str, str | int | float] = {"Sex": sex, "Age": film.age, "Frontal/Lateral": "Frontal", "AP/PA": film.view}
    return {**head, **{column: float(value) for column, value in present.items()}}


def write_covid_radiography_twin(root: Path, spec: TwinSpec) -> None:
    """Write phantoms, numbered by class as in the release; the folders the task ignores are left out."""
    folder, classes = covid_radiography.FOLDER, covid_radiography.CLASSES
    for name in classes:
        (root / folder / name / "images").mkdir(parents=True)
    written = dict.fromkeys(classes, 0)
    for film in draw_films(COVID, spec):
        name = "COVID" if film.findings.ground_glass > 0 else "Normal"
        written[name] += 1
        write_grey(root / folder / name / "images" / f"{name}-{written[name]}.png", film.grey)


def write_rsna_twin(root: Path, spec: TwinSpec) -> None:
    """Write phantoms as DICOM in several encodings, the class table with a row per box, and the box table."""
    (root / rsna_pneumonia.IMAGES).mkdir(parents=True)
    classes, boxes = [], []
    for film in draw_films(RSNA, spec):
        rng = numpy_rng(spec.seed, "rsna-pneumonia", film.patient)
        patient = str(uuid.UUID(bytes=rng.bytes(16), version=4))
        write_dicom(root / rsna_pneumonia.IMAGES / f"{patient}.dcm", film, patient, DicomStyle.draw(rng))
        name = _rsna_class(film)
        drawn = opacity_boxes(film) if name == rsna_pneumonia.POSITIVE else [("", "", "", "")]
        classes += [(patient, name)] * len(drawn)
        boxes += [(patient, *box, int(name == rsna_pneumonia.POSITIVE)) for box in drawn]
    pl.DataFrame(classes, ["patientId", "class"], orient="row").write_csv(root / rsna_pneumonia.TABLE)
    columns = ["patientId", "x", "y", "width", "height", "Target"]
    pl.DataFrame(boxes, columns, orient="row").write_csv(root / rsna_pneumonia.BOXES)


def _rsna_class(film: Film) -> str:
    if has_opacity(film.findings):
        return rsna_pneumonia.POSITIVE
    return rsna_pneumonia.NEGATIVE if film.findings == Findings() else rsna_pneumonia.OTHER


def write_pneumoniamnist_twin(root: Path, spec: TwinSpec) -> None:
    """Write children's chest phantoms, drawn at twice the size and averaged down; split about 8:1:1 as in MedMNIST."""
    side = medmnist.SIDE
    films = draw_films(PAEDIATRIC, spec.model_copy(update={"image_size": 2 * side}))
    drawn = [(film.grey.reshape(side, 2, side, 2).mean((1, 3)), film.findings) for film in films]
    images = eight_bits(np.stack([grey for grey, _ in drawn]))
    sick = [max(findings.consolidation, findings.ground_glass) > 0 for _, findings in drawn]
    labels = np.array(sick, np.uint8)[:, None]
    ends = np.array([0, 8 * len(sick) // 10, 9 * len(sick) // 10, len(sick)])
    arrays = {}
    for split, start, stop in zip(medmnist.SPLITS, ends, ends[1:], strict=False):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[start:stop], labels[start:stop]
    np.savez_compressed(root / "pneumoniamnist.npz", allow_pickle=False, **arrays)
