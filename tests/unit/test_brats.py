"""BraTS: both namings, sites, labels and the box read as they lie on disk; its twin; the real extract."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from medfed.data.decode import decode
from medfed.datasets.base import write_twin
from medfed.study.data import TwinSpec
from medfed.twins.brain import SITES
from support.native_files import CASE_2018, CASE_2024, DATASET, NAMES, grids, native_file, write_case, write_volume


def test_a_case_of_2018_becomes_an_example(tmp_path: Path) -> None:
    row = DATASET.index(write_case(tmp_path)).row(0, named=True)
    assert sorted(row.pop("files")) == sorted(
        f"{CASE_2018}/Brats18_TCIA01_9001_1_{ending}.nii.gz" for ending in ("flair", "seg", "t1", "t1ce", "t2")
    )
    assert row == {
        "example": "Brats18_TCIA01_9001_1",
        "patient": "brats:Brats18_TCIA01_9001",
        "site": "TCIA01",
        "split": None,
        "segmented": 1,
        "high_grade": 1,
    }


def test_time_points_of_2024_are_one_patient_whose_site_the_table_tells(tmp_path: Path) -> None:
    for case in (CASE_2024, "BraTS-GLI-09001-101", "BraTS-GLI-09002-100"):
        write_case(tmp_path, case)
    (tmp_path / "sites.csv").write_text("case,site\nBraTS-GLI-09001,North\n")
    index = DATASET.index(tmp_path)
    assert index["patient"].to_list() == ["brats:BraTS-GLI-09001"] * 2 + ["brats:BraTS-GLI-09002"]
    assert index["site"].to_list() == ["North", "North", None]
    assert index["high_grade"].to_list() == [None] * 3


@pytest.mark.parametrize(
    ("case", "patient", "site"),
    [
        ("Brats18_CBICA_AAB_1", "Brats18_CBICA_AAB", "CBICA"),
        ("Brats18_2013_2_1", "Brats18_2013_2", "2013"),
        ("BraTS2021_00000", "BraTS2021_00000", None),
        ("BraTS20_Training_001", "BraTS20_Training_001", None),
    ],
)
def test_patient_and_site_come_from_the_name(tmp_path: Path, case: str, patient: str, site: str | None) -> None:
    row = DATASET.index(write_case(tmp_path, case)).row(0, named=True)
    assert (row["patient"], row["site"]) == (f"brats:{patient}", site)


@pytest.mark.parametrize(
    ("case", "classes"), [(CASE_2018, [1, 2, 3, 3]), (CASE_2024, [1, 2, 3, 0]), ("BraTS2021_00000", [1, 2, 3, 3])]
)
def test_labels_of_both_releases_become_one_convention(tmp_path: Path, case: str, classes: list[int]) -> None:
    record = DATASET.index(write_case(tmp_path, case)).row(0, named=True)
    loaded = DATASET.load(tmp_path, record)
    # The brain begins at (2, 3, 1); the tumour lay at [4, 5, 2:6].
    np.testing.assert_array_equal(loaded["tumour"][2, 2, 1:5], classes)
    assert np.count_nonzero(loaded["tumour"]) == np.count_nonzero(classes)


def test_all_volumes_are_cut_by_the_box_that_holds_the_brain_of_any_sequence(tmp_path: Path) -> None:
    record = DATASET.index(write_case(tmp_path)).row(0, named=True)
    wider = np.zeros((12, 11, 10), np.int16)
    wider[2:8, 3:10, 1:9] = 5
    wider[9, 4, 4] = 6

    write_volume(native_file(tmp_path, CASE_2018, "t2"), wider)
    loaded = DATASET.load(tmp_path, record)
    assert {values.shape for values in loaded.values()} == {(8, 7, 8)}
    np.testing.assert_array_equal(loaded["t1"][:6].ravel(), np.arange(6 * 7 * 8) + 100)
    assert not loaded["t1"][6:].any()


def test_a_missing_sequence_is_absent_not_zero(tmp_path: Path) -> None:
    for case in (CASE_2018, CASE_2024):
        write_case(tmp_path, case)
    native_file(tmp_path, CASE_2024, "t1c").unlink()
    data = decode(DATASET, tmp_path, grids(16))
    there = dict(zip(data.index["example"], data.present["t1c"], strict=True))
    assert there == {Path(CASE_2018).name: True, CASE_2024: False}
    assert data.present["t2"].all()


@pytest.mark.parametrize("data_root", ["", "HGG"])
def test_the_root_lies_above_the_grades_unless_one_grade_is_asked_for(tmp_path: Path, data_root: str) -> None:
    root = tmp_path / "MICCAI_BraTS_2018_Data_Training"
    write_case(root)
    write_case(root, "LGG/Brats18_TCIA02_9002_1")
    above = root / data_root if data_root else tmp_path
    found = DATASET.locate(above)
    assert found == root / data_root
    assert DATASET.index(found)["high_grade"].to_list() == ([1] if data_root else [1, 0])


def test_the_twin_decodes_whole_in_both_layouts_with_five_sites(tmp_path: Path) -> None:
    write_twin(DATASET, tmp_path / "twin", TwinSpec(num_patients=24, seed=3))
    assert DATASET.locate(tmp_path) == tmp_path / "twin"
    data = decode(DATASET, tmp_path / "twin", grids(32))
    assert data.card.synthetic
    assert set(data.index["site"]) == {site.code for site in SITES}
    assert data.index["patient"].n_unique() == 24 < len(data.index)  # some at two time points
    assert set(data.index["high_grade"]) == {0, 1, None}
    masks = data.truths["tumour"]
    for part in (1, 2):
        assert (masks == part).any((1, 2, 3)).all()
    enhancing = (masks == 3).any((1, 2, 3))
    assert 0.3 < enhancing.mean() < 1
    for name in NAMES:
        brain = data.samples[name] != 0
        assert not (masks.astype(bool) & ~brain).any()
        inside = data.samples[name][0][brain[0]].astype(np.float64)
        assert abs(inside.mean()) < 1e-2
        assert abs(inside.std() - 1) < 1e-2


def test_a_sequence_shows_what_the_others_do_not(tmp_path: Path) -> None:
    """Contrast enhances only T1c; oedema is bright in FLAIR and dark in T1."""
    write_twin(DATASET, tmp_path, TwinSpec(num_patients=12, difficulty=0.2))
    data = decode(DATASET, tmp_path, grids(32))
    masks = data.truths["tumour"]

    def mean(name: str, part: int) -> float:
        return float(data.samples[name][masks == part].astype(np.float64).mean())

    assert mean("t1c", 3) > mean("t1c", 2) + 1
    assert abs(mean("t1", 3) - mean("t1", 2)) < 0.5
    assert mean("flair", 2) > 1
    assert mean("t1", 2) < 0


def test_a_twin_is_byte_identical_and_follows_seed_and_difficulty(tmp_path: Path) -> None:
    def sums(folder: str, **settings: float) -> dict[str, str]:
        write_twin(DATASET, tmp_path / folder, TwinSpec(num_patients=3, **settings))
        files = sorted((tmp_path / folder).rglob("*.gz"))
        return {
            str(file.relative_to(tmp_path / folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
        }

    first = sums("a", seed=1)
    assert first == sums("b", seed=1)
    assert set(first.values()).isdisjoint(sums("c", seed=2).values())
    harder = sums("d", seed=1, difficulty=0.9)
    assert {name for name in first if first[name] == harder[name]} == {name for name in first if "seg" in name}


def test_the_real_extract_is_read_in_place(real_data: Path) -> None:
    if not (real_data / "brats").is_dir():
        pytest.skip(f"no BraTS extract at {real_data / 'brats'}")
    root = DATASET.locate(real_data / "brats")
    index = DATASET.index(root)
    assert index["site"].null_count() == 0
    assert index["segmented"].to_list() == [1] * len(index)
    loaded = DATASET.load(root, index.row(0, named=True))
    assert {values.shape for values in loaded.values()} == {loaded["tumour"].shape}
    assert np.unique(loaded["tumour"]).tolist() == [0, 1, 2, 3]
    assert all(side < full for side, full in zip(loaded["t1"].shape, (240, 240, 155), strict=True))
