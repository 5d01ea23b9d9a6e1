"""Damaged, missing and wrong image files and tables end in a message that names the file and the next step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pydicom
import pytest
from PIL import Image

from medfed.core.errors import DataError
from medfed.data.decode import decode
from medfed.datasets.base import Dataset
from medfed.datasets.chestxray14 import ChestXray14
from medfed.datasets.chexpert import CheXpert
from medfed.datasets.covid_radiography import CovidRadiography
from medfed.datasets.dicom import read_dicom
from medfed.datasets.images import read_grey
from medfed.datasets.medmnist import MedMnist
from medfed.datasets.rsna_pneumonia import RsnaPneumonia
from medfed.modalities.image import ImageModality
from medfed.study.data import TwinSpec
from support.twins import IMAGE_DATASETS, PNEUMONIA_MNIST, twin

MODALITIES = {"image": ImageModality(size=16)}


def message(call: Callable[[], object]) -> str:
    """Return the DataError's text; it must name a next step."""
    with pytest.raises(DataError) as error:
        call()
    assert "next step:" in str(error.value)
    return str(error.value)


def decode_message(dataset: Dataset, root: Path) -> str:
    return message(lambda: decode(dataset, root, MODALITIES))


def edit(path: Path, old: str, new: str) -> None:
    """Replace the first ``old`` in a text file."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.95])
def test_a_truncated_picture_is_found(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"image{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    assert str(path) in message(lambda: read_grey(path))


def test_a_flipped_bit_in_a_png_is_found(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert "damaged" in message(lambda: read_grey(path))


def test_a_text_file_called_png_is_told_by_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    assert "it begins with b'version http'" in message(lambda: read_grey(path))


@pytest.fixture
def dicom(tmp_path: Path) -> Path:
    twin(RsnaPneumonia(), tmp_path, num_patients=1)
    return next((tmp_path / "stage_2_train_images").iterdir())


@pytest.mark.parametrize("keep", [0.0, 0.05, 0.2, 0.5, 0.99])
def test_a_truncated_dicom_file_is_found(dicom: Path, keep: float) -> None:
    dicom.write_bytes(dicom.read_bytes()[: int(keep * dicom.stat().st_size)])
    assert str(dicom) in message(lambda: read_dicom(dicom))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"NumberOfFrames": 2}, "2 frames"),
        ({"PhotometricInterpretation": "RGB"}, "'RGB'; allowed: MONOCHROME1, MONOCHROME2"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "WindowWidth is 0"),
        ({"Rows": 64}, "less than expected"),
    ],
)
def test_a_dicom_file_of_the_wrong_kind_is_refused(dicom: Path, tags: dict[str, object], words: str) -> None:
    file = pydicom.dcmread(dicom)
    for name, value in tags.items():
        setattr(file, name, value)
    file.save_as(dicom)
    assert words in message(lambda: read_dicom(dicom))


def test_a_picture_called_dcm_is_refused(tmp_path: Path) -> None:
    Image.new("L", (40, 40)).save(tmp_path / "image.png")
    (tmp_path / "image.png").rename(tmp_path / "image.dcm")
    assert "not a DICOM file" in message(lambda: read_dicom(tmp_path / "image.dcm"))


def test_an_unknown_compression_names_the_way_out(dicom: Path) -> None:
    file = pydicom.dcmread(dicom)
    file.PixelData = pydicom.encaps.encapsulate([b"\x00\x01"])
    file["PixelData"].VR = "OB"
    file.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    file.save_as(dicom)
    text = message(lambda: read_dicom(dicom))
    assert "JPEG-LS" in text
    assert "export it as Explicit VR Little Endian" in text


@pytest.mark.parametrize("dataset", IMAGE_DATASETS[1:4], ids=lambda dataset: dataset.name)
def test_a_row_without_its_file_names_file_and_table(dataset: Dataset, tmp_path: Path) -> None:
    root = twin(dataset, tmp_path)
    index = dataset.index(root)
    missing = root / index["files"][3][0]
    missing.unlink()
    text = decode_message(dataset, root)
    assert str(missing) in text
    assert ".csv names it" in text
    problems = [problem for problem in dataset.check(root) if problem]
    assert [problem.example for problem in problems] == [index["example"][3]]
    decoded = decode(dataset, root, MODALITIES, skip_bad=True)
    assert len(decoded.index) == len(index) - 1
    assert decoded.skipped[0].where == str(missing)


@pytest.mark.parametrize(
    ("dataset", "table", "column"),
    [
        (RsnaPneumonia(), "stage_2_detailed_class_info.csv", "class"),
        (CheXpert(), "valid.csv", "Pleural Effusion"),
        (ChestXray14(), "Data_Entry_2017_v2020.csv", "Patient ID"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_damaged_tables(dataset: Dataset, table: str, column: str, tmp_path: Path) -> None:
    root = twin(dataset, tmp_path)
    whole = (root / table).read_bytes()
    edit(root / table, column, "Kolumne")
    assert f"column '{column}' is missing" in message(lambda: dataset.index(root))
    (root / table).write_bytes(whole + "Ünbekannt".encode("latin-1"))
    assert f"{root / table}: not UTF-8" in message(lambda: dataset.index(root))
    (root / table).unlink()
    assert f"{root / table}: the file is missing" in message(lambda: dataset.index(root))


@pytest.mark.parametrize(
    ("dataset", "table", "old", "new", "words"),
    [
        (RsnaPneumonia(), "stage_2_detailed_class_info.csv", ",Normal", ",normal", "'normal' is not allowed"),
        (CheXpert(), "valid.csv", ",0.0,0.0,", ",2.0,2.0,", "'2.0' is not allowed"),
        (CheXpert(), "valid.csv", "/patient64541/", "/person/", "line 2: 'CheXpert-v1.0-small/valid/person/"),
        (ChestXray14(), "Data_Entry_2017_v2020.csv", "No Finding", "Nothing", "'Nothing' is not allowed"),
    ],
)
def test_a_label_outside_the_official_ones_is_an_error(
    dataset: Dataset, table: str, old: str, new: str, words: str, tmp_path: Path
) -> None:
    root = twin(dataset, tmp_path)
    edit(root / table, old, new)
    assert words in message(lambda: dataset.index(root))


def test_an_rsna_patient_of_two_classes_is_an_error(tmp_path: Path) -> None:
    root = twin(RsnaPneumonia(), tmp_path)
    path = root / "stage_2_detailed_class_info.csv"
    patient = pl.read_csv(path).filter(pl.col("class") == "Normal")["patientId"][0]
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{patient},Lung Opacity\n")
    assert f"{patient!r} has the classes 'Normal' and 'Lung Opacity'" in message(lambda: RsnaPneumonia().index(root))


def test_a_source_map_must_cover_every_image_and_every_row_must_have_its_file(tmp_path: Path) -> None:
    root = twin(CovidRadiography(), tmp_path)
    index = CovidRadiography().index(root)
    files = [file[0].removeprefix("COVID-19_Radiography_Dataset/") for file in index["files"]]
    rows = [f"{file},ChestX-ray14 x.png,{number % 5}" for number, file in enumerate(files)]
    sources = root / "source_map.csv"

    def write(*lines: str) -> None:
        sources.write_text("\n".join(("file,source,patient_id", *lines)) + "\n", encoding="utf-8")

    write(*rows)
    assert CovidRadiography().index(root)["patient"].n_unique() == 5
    write(*rows[1:])
    assert f"no row for {files[0]!r}" in message(lambda: CovidRadiography().index(root))
    write(*rows, "COVID/images/COVID-999.png,ChestX-ray14 y.png,7")
    assert "COVID-999.png: the image is missing" in decode_message(CovidRadiography(), root)
    write(*rows[1:], rows[0].replace("ChestX-ray14", "somewhere"))
    assert f"line {len(rows) + 1}: 'somewhere' is not allowed" in message(lambda: CovidRadiography().index(root))


def test_a_covid_download_without_a_class_is_an_error(tmp_path: Path) -> None:
    root = twin(CovidRadiography(), tmp_path)
    folder = root / "COVID-19_Radiography_Dataset" / "Normal"
    folder.rename(root / "elsewhere")
    assert f"{folder / 'images'}: the folder is missing" in message(lambda: CovidRadiography().index(root))


def test_a_truncated_npz_is_found(tmp_path: Path) -> None:
    path = twin(PNEUMONIA_MNIST, tmp_path) / "pneumoniamnist.npz"
    content = path.read_bytes()
    for keep in (0, 100, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:keep])
        assert f"{path}: not a whole .npz" in decode_message(PNEUMONIA_MNIST, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("val_labels", None, "array 'val_labels' is missing"),
        ("train_images", np.zeros((40, 28, 28, 3), np.uint8), "train_images is uint8 (40, 28, 28, 3)"),
        ("train_images", np.zeros((40, 28, 28), np.float32), "train_images is float32"),
        ("test_labels", np.zeros((3, 1), np.uint8), "test_labels has shape (3, 1) for 5 images"),
        ("test_labels", np.full((5, 1), 2, np.uint8), "test_labels, row 0: 2 is not allowed"),
        ("test_labels", np.array([None] * 5), "not a whole .npz"),  # object arrays would need pickle
    ],
)
def test_an_npz_with_wrong_arrays_is_refused(key: str, value: np.ndarray | None, words: str, tmp_path: Path) -> None:
    path = twin(PNEUMONIA_MNIST, tmp_path, num_patients=50) / "pneumoniamnist.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays.pop(key)
    if value is not None:
        arrays[key] = value
    np.savez(path, **arrays)
    assert words in message(lambda: PNEUMONIA_MNIST.index(tmp_path))


def test_only_chests_have_a_phantom(tmp_path: Path) -> None:
    class BreastMnist(MedMnist):
        name = "breastmnist"
        card = PNEUMONIA_MNIST.card
        targets = ("benign",)
        marker = "breastmnist.npz"

    assert "no synthetic twin of breastmnist" in message(lambda: BreastMnist().synthesize(tmp_path, TwinSpec()))
