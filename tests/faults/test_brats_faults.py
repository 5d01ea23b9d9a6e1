"""Broken BraTS folders: each fault is answered with the file and a next step."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medfed.core.errors import DataError
from medfed.data.decode import decode
from support.native_files import CASE_2018, CASE_2024, DATASET, NAMES, grids, native_file, write_case, write_volume


def cut_compressed(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def cut_voxels(path: Path) -> None:
    """A whole gzip stream around a NIfTI file that ends early: nibabel opens it."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-200]))


def garbage(path: Path) -> None:
    path.write_bytes(b"not a volume at all")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut_compressed, cut_voxels, garbage, empty])
@pytest.mark.parametrize("what", ["t1c", "seg"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], None], what: str) -> None:
    record = DATASET.index(write_case(tmp_path)).row(0, named=True)
    path = native_file(tmp_path, CASE_2018, what)
    damage(path)
    with pytest.raises(DataError, match=rf"(?s){path.name}.*not a readable NIfTI.*next step: .*download it again"):
        DATASET.load(tmp_path, record)


def test_a_case_without_segmentation_is_named_or_left_out(tmp_path: Path) -> None:
    write_case(tmp_path, CASE_2018)
    write_case(tmp_path, CASE_2024)
    native_file(tmp_path, CASE_2024, "seg").unlink()
    with pytest.raises(DataError, match=rf"(?s){CASE_2024}.*no segmentation.*next step: take the training set"):
        decode(DATASET, tmp_path, grids(16))
    data = decode(DATASET, tmp_path, grids(16), skip_bad=True)
    assert [problem.example for problem in data.skipped] == [CASE_2024]
    assert data.index["example"].to_list() == [Path(CASE_2018).name]
    assert len(data.truths["tumour"]) == len(data.samples["t1"]) == 1


@pytest.mark.parametrize(("case", "label"), [(CASE_2018, 7), (CASE_2018, 3), (CASE_2024, 5), (CASE_2024, 1.5)])
def test_an_unknown_label_is_named(tmp_path: Path, case: str, label: float) -> None:
    record = DATASET.index(write_case(tmp_path, case)).row(0, named=True)
    labels = np.zeros((12, 11, 10), np.float32)
    labels[4, 5, 5] = label
    path = native_file(tmp_path, case, "seg")
    write_volume(path, labels)
    with pytest.raises(DataError, match=rf"(?s){path.name}.*unknown label {label:g}; known in this release: 0, 1, 2"):
        DATASET.load(tmp_path, record)


def spoiled(value: float) -> np.ndarray:
    voxels = np.ones((12, 11, 10), np.float32)
    voxels[3, 3, 3] = value
    return voxels


@pytest.mark.parametrize(
    ("what", "voxels", "spacing_mm", "problem"),
    [
        ("t2", spoiled(np.nan), 1.0, "1 of 1320 voxels are not finite"),
        ("t2", spoiled(np.inf), 1.0, "1 of 1320 voxels are not finite"),
        ("flair", np.ones((12, 11, 9), np.int16), 1.0, r"a grid of \(12, 11, 9\) voxels; the segmentation has"),
        ("flair", np.ones((12, 11, 10, 2), np.int16), 1.0, "expected three axes"),
        ("t1", np.ones((12, 11, 10), np.int16), 2.0, r"voxels of \(2.0, 2.0, 2.0\) mm; BraTS has 1 mm"),
    ],
)
def test_a_wrong_volume_is_named(
    tmp_path: Path, what: str, voxels: np.ndarray, spacing_mm: float, problem: str
) -> None:
    record = DATASET.index(write_case(tmp_path)).row(0, named=True)
    path = native_file(tmp_path, CASE_2018, what)
    write_volume(path, voxels, spacing_mm)
    with pytest.raises(DataError, match=rf"(?s){path.name}.*{problem}.*next step: "):
        DATASET.load(tmp_path, record)


def test_a_truth_outside_the_brain_is_refused(tmp_path: Path) -> None:
    record = DATASET.index(write_case(tmp_path)).row(0, named=True)
    labels = np.zeros((12, 11, 10), np.uint8)
    labels[0, 0, 0] = 1
    write_volume(native_file(tmp_path, CASE_2018, "seg"), labels)
    with pytest.raises(DataError, match="the tumour reaches beyond the brain"):
        DATASET.load(tmp_path, record)


def test_a_case_of_zeros_is_refused(tmp_path: Path) -> None:
    record = DATASET.index(write_case(tmp_path)).row(0, named=True)
    for name in (*NAMES, "seg"):
        write_volume(native_file(tmp_path, CASE_2018, name), np.zeros((12, 11, 10), np.uint8))
    with pytest.raises(DataError, match="every sequence is zero everywhere"):
        DATASET.load(tmp_path, record)


def test_a_brain_larger_than_the_grid_names_the_setting(tmp_path: Path) -> None:
    write_case(tmp_path)
    write_volume(native_file(tmp_path, CASE_2018, "t1"), np.ones((12, 11, 10), np.int16))
    with pytest.raises(DataError, match=r"12 × 11 × 10 voxels does not fit .*8 × 8 × 8") as caught:
        decode(DATASET, tmp_path, grids(8))
    assert ".size" in str(caught.value.hint)


def test_strange_files_and_empty_cases_are_named(tmp_path: Path) -> None:
    write_case(tmp_path)
    strange = tmp_path / CASE_2018 / f"{Path(CASE_2018).name}_pet.nii.gz"
    strange.write_bytes(b"")
    with pytest.raises(DataError, match=rf"(?s){strange.name}.*unknown sequence 'pet'; known: t1, t1ce, t2, flair"):
        DATASET.index(tmp_path)
    strange.unlink()
    double = native_file(tmp_path, CASE_2018, "t1").with_suffix("")
    double.write_bytes(b"")
    with pytest.raises(DataError, match="two files of 't1'"):
        DATASET.index(tmp_path)
    double.unlink()
    for name in NAMES:
        native_file(tmp_path, CASE_2018, name).unlink()
    with pytest.raises(DataError, match=rf"(?s){Path(CASE_2018).name}.*has no sequence"):
        DATASET.index(tmp_path)


def test_a_table_of_sites_without_its_columns_is_named(tmp_path: Path) -> None:
    write_case(tmp_path, CASE_2024)
    (tmp_path / "sites.csv").write_text("subject,hospital\nx,y\n")
    with pytest.raises(DataError, match=r"(?s)sites\.csv.*'case', 'site' is missing"):
        DATASET.index(tmp_path)
