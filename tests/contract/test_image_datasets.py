"""Every image dataset keeps the contract of ``datasets.base``: on twins, in variants of its layout, on real files."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pydicom
import pytest

from medfed.data.decode import decode
from medfed.datasets.base import Dataset
from medfed.datasets.chestxray14 import ChestXray14
from medfed.datasets.chexpert import CheXpert
from medfed.datasets.covid_radiography import CovidRadiography
from medfed.datasets.dicom import read_dicom
from medfed.datasets.rsna_pneumonia import RsnaPneumonia
from medfed.modalities.image import ImageModality
from medfed.study.data import TwinSpec
from medfed.twins.chest_cohorts import RSNA, draw_films
from support.twins import IMAGE_DATASETS, PNEUMONIA_MNIST, twin

MODALITIES = {"image": ImageModality(size=16)}
each = pytest.mark.parametrize("dataset", IMAGE_DATASETS, ids=lambda dataset: dataset.name)


def checksums(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@each
def test_a_twin_is_byte_identical_and_follows_its_seed(dataset: Dataset, tmp_path: Path) -> None:
    first, again, other = (
        checksums(twin(dataset, tmp_path / name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first != other


@each
def test_a_twin_decodes_whole_and_says_that_it_is_one(dataset: Dataset, tmp_path: Path) -> None:
    twin(dataset, tmp_path / "somewhere" / "below", num_patients=16)
    root = dataset.locate(tmp_path)
    decoded = decode(dataset, root, MODALITIES)
    assert root == tmp_path / "somewhere" / "below"
    assert decoded.card.synthetic
    assert decoded.present["image"].all()
    assert 0.05 < decoded.samples["image"].mean() < 0.95
    spread = decoded.samples["image"].std(axis=(1, 2, 3))
    assert spread.min() > 0.05  # no blank image
    for target in (name for name in dataset.targets if name != "answer"):
        assert set(decoded.target(target).tolist()) <= {0, 1}
    official = decoded.index.drop_nulls("split").group_by("patient").agg(pl.col("split").n_unique())
    assert official["split"].max() in (None, 1)


@pytest.mark.parametrize("dataset", [CheXpert(), ChestXray14()], ids=lambda dataset: dataset.name)
def test_some_patients_have_two_images(dataset: Dataset, tmp_path: Path) -> None:
    index = dataset.index(twin(dataset, tmp_path, num_patients=25))
    assert index["patient"].n_unique() == 25
    assert len(index) > 25


def test_rsna_lists_each_patient_once_and_drops_the_third_class(tmp_path: Path) -> None:
    root = twin(RsnaPneumonia(), tmp_path, num_patients=25)
    table = pl.read_csv(root / "stage_2_detailed_class_info.csv")
    index = RsnaPneumonia().index(root)
    used = table.filter(pl.col("class").is_in(["Lung Opacity", "Normal"]))
    assert len(table) > table["patientId"].n_unique()  # a row per box
    assert used["patientId"].n_unique() < table["patientId"].n_unique()  # the third class occurs
    assert sorted(index["example"]) == sorted(used["patientId"].unique())
    boxes = pl.read_csv(root / "stage_2_train_labels.csv")
    assert len(boxes) == len(table)
    assert boxes.filter(pl.col("Target") == 1)["width"].null_count() == 0


def test_rsna_twins_come_in_all_encodings_and_decode_to_the_phantom(tmp_path: Path) -> None:
    root = twin(RsnaPneumonia(), tmp_path, num_patients=20)
    table = pl.read_csv(root / "stage_2_detailed_class_info.csv")
    patients = table["patientId"].unique(maintain_order=True)
    kinds = set()
    for patient, film in zip(patients, draw_films(RSNA, TwinSpec(num_patients=20, image_size=32)), strict=True):
        path = root / "stage_2_train_images" / f"{patient}.dcm"
        header = pydicom.dcmread(path, stop_before_pixels=True)
        kinds |= {("bits", header.BitsStored), header.PhotometricInterpretation, ("window", "WindowWidth" in header)}
        np.testing.assert_allclose(read_dicom(path), film.grey, atol=0.5 / 255 + 1e-6)  # rounding of 8 bits
    assert kinds == {("bits", 8), ("bits", 12), "MONOCHROME1", "MONOCHROME2", ("window", True), ("window", False)}


def test_covid_takes_only_its_two_classes(tmp_path: Path) -> None:
    root = twin(CovidRadiography(), tmp_path)
    folder = root / "COVID-19_Radiography_Dataset"
    shutil.copytree(folder / "Normal", folder / "Viral Pneumonia")
    shutil.copytree(folder / "Normal" / "images", folder / "Normal" / "masks")
    index = CovidRadiography().index(root)
    assert len(index) == 12
    assert index["covid"].sum() == len(list((folder / "COVID" / "images").iterdir()))
    assert index["patient"].n_unique() == 12


def test_chexpert_reads_any_folder_name_and_an_optional_training_table(tmp_path: Path) -> None:
    root = twin(CheXpert(), tmp_path / "archive")
    table = pl.read_csv(root / "valid.csv")
    assert len(table.columns) == 5 + 14
    assert set(CheXpert().index(root)["split"]) == {"test"}
    train = table.head(1).with_columns(
        pl.col("Path").str.replace("valid/patient64541", "train/patient00001"),
        pl.lit(-1.0).alias("Atelectasis"),
        pl.lit(None).alias("Pleural Effusion"),
        pl.lit(1).alias("Enlarged Cardiomediastinum"),
    )
    train.write_csv(root / "train.csv")
    added = CheXpert().index(root).filter(pl.col("patient") == "chexpert:patient00001")
    assert added.select("split", "atelectasis", "pleural_effusion", "enlarged_cardiomediastinum").rows() == [
        ("train", 0, 0, 1)
    ]


def test_chexpert_findings_are_read_each_from_its_own_column(tmp_path: Path) -> None:
    root = twin(CheXpert(), tmp_path, num_patients=12)
    table, index = pl.read_csv(root / "valid.csv"), CheXpert().index(root)
    assert (index["pleural_effusion"] == table["Pleural Effusion"]).all()
    assert (index["atelectasis"] == table["Atelectasis"]).all()
    assert (index["pleural_effusion"] != index["atelectasis"]).any()


def test_chestxray14_reads_numbered_folders_and_the_old_table_name(tmp_path: Path) -> None:
    root = twin(ChestXray14(), tmp_path, num_patients=14)
    expected = decode(ChestXray14(), root, MODALITIES)
    assert set(expected.index["split"]) == {"test", "train"}
    (root / "images_001").mkdir()
    (root / "images").rename(root / "images_001" / "images")
    (root / "Data_Entry_2017_v2020.csv").rename(root / "Data_Entry_2017.csv")
    moved = decode(ChestXray14(), ChestXray14().locate(tmp_path), MODALITIES)
    np.testing.assert_array_equal(moved.samples["image"], expected.samples["image"])
    assert moved.index.drop("files").equals(expected.index.drop("files"))
    for name in ("test_list.txt", "train_val_list.txt"):
        (root / name).unlink()
    assert ChestXray14().index(root)["split"].null_count() == len(expected.index)


def test_pneumoniamnist_keeps_the_official_split(tmp_path: Path) -> None:
    index = PNEUMONIA_MNIST.index(twin(PNEUMONIA_MNIST, tmp_path, num_patients=50))
    counts = dict(index["split"].value_counts().iter_rows())
    assert counts == {"train": 40, "development": 5, "test": 5}


COUNTS = {  # extract → dataset, images, positives of its first target
    "covid-radiography-layout": (CovidRadiography(), 108, 54),
    "rsna-layout": (RsnaPneumonia(), 60, 30),
    "chestxray14": (ChestXray14(), 27, 5),
    "pneumoniamnist": (PNEUMONIA_MNIST, 2289, 1134),
}


@pytest.mark.parametrize("folder", COUNTS)
def test_real_extracts_decode_whole(folder: str, real_data: Path) -> None:
    dataset, images, positives = COUNTS[folder]
    root = dataset.locate(real_data)
    decoded = decode(dataset, root, MODALITIES)
    assert root == real_data / folder
    assert not decoded.card.synthetic
    assert decoded.present["image"].sum() == images
    assert (decoded.target(dataset.targets[0]) == 1).sum() == positives


def test_a_person_is_one_patient_in_every_dataset(real_data: Path) -> None:
    patients = {
        dataset.name: set(dataset.index(dataset.locate(real_data))["patient"])
        for dataset in (CovidRadiography(), RsnaPneumonia(), ChestXray14())
    }
    assert "nih:00003178" in patients["covid-radiography"]  # Normal-00003178_000.png
    assert "hannover:042f06a9" in patients["covid-radiography"]  # COVID-b343e657.png and COVID-c9280a30.png
    assert patients["rsna-pneumonia"] & patients["chestxray14"]
    assert all(patient.startswith("nih:") for patient in patients["rsna-pneumonia"] | patients["chestxray14"])


def test_a_real_dicom_file_with_implicit_vr_decodes(real_data: Path) -> None:
    grey = read_dicom(next((real_data / "nih-dicom").glob("*.dcm")))
    assert grey.shape == (1024, 1024)
    assert grey.max() == pytest.approx(252 / 255)  # its brightest stored value is 252 of 8 bits
