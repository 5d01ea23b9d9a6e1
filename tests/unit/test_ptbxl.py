"""PTB-XL: labels, splits and records read as they lie on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medfed.data.decode import decode, validate_index
from medfed.datasets.base import write_twin
from medfed.datasets.ptbxl import PTBXL
from medfed.modalities.signal import LEADS, SignalModality
from medfed.study.data import TwinSpec
from support.native_files import write_ptbxl

DATASET = PTBXL()


def test_a_row_becomes_an_example(tmp_path: Path) -> None:
    row = DATASET.index(write_ptbxl(tmp_path)).row(0, named=True)
    assert row == {
        "example": "ptbxl:7",
        "patient": "ptbxl:15709",
        "site": "2",
        "split": "private",
        "files": ["records100/00000/00007_lr.hea", "records100/00000/00007_lr.dat"],
        "abnormal": 0,
        "ectopic_beats": 0,
        "codes": ["NORM", "SR"],
    }


@pytest.mark.parametrize(
    ("codes", "abnormal"),
    [("{'NORM': 100.0}", 0), ("{'NORM': 80}", 0), ("{'NORM': 50.0}", 1), ("{'IMI': 100.0, 'NORM': 0.0}", 1), ("{}", 1)],
)
def test_abnormal_is_a_norm_likelihood_of_at_most_50(tmp_path: Path, codes: str, abnormal: int) -> None:
    assert DATASET.index(write_ptbxl(tmp_path, scp_codes=codes))["abnormal"].to_list() == [abnormal]


@pytest.mark.parametrize(("text", "ectopic"), [("1ES", 1), ("VES", 1), ("SVES,", 1), ("", 0), ("sinus", 0)])
def test_ectopic_beats_are_what_extra_beats_calls_es(tmp_path: Path, text: str, ectopic: int) -> None:
    assert DATASET.index(write_ptbxl(tmp_path, extra_beats=text))["ectopic_beats"].to_list() == [ectopic]


def test_the_ten_folds_are_seven_one_one_one(tmp_path: Path) -> None:
    splits = [DATASET.index(write_ptbxl(tmp_path, strat_fold=f"{fold}"))["split"][0] for fold in range(1, 11)]
    assert splits == ["private"] * 7 + ["public", "development", "test"]


def test_leads_are_ordered_by_name(tmp_path: Path) -> None:
    write_twin(DATASET, tmp_path, TwinSpec(num_patients=1))
    record = DATASET.index(tmp_path).row(0, named=True)
    before = DATASET.load(tmp_path, record)["ecg"]
    header, signal = (tmp_path / file for file in record["files"])
    first, *lines = header.read_text().splitlines()
    lines = [line.replace("AVR", "aVR") for line in lines]
    header.write_text("\n".join([first, *reversed(lines)]) + "\n")
    samples = np.fromfile(signal, "<i2").reshape(-1, len(LEADS))
    signal.write_bytes(samples[:, ::-1].tobytes())
    np.testing.assert_array_equal(DATASET.load(tmp_path, record)["ecg"], before)


def test_real_extract(real_data: Path) -> None:
    root = DATASET.locate(real_data)
    index = DATASET.index(root)
    validate_index(DATASET, root, index)
    print("the extract's own count: 349 ECGs of 323 patients, NORM > 50 in 202, extra beats 'ES' in 20")
    assert len(index) == 349
    assert index["patient"].n_unique() == 323
    assert index["abnormal"].sum() == 349 - 202
    assert index["ectopic_beats"].sum() == 20
    signal = DATASET.load(root, index.row(0, named=True))["ecg"]
    assert signal.shape == (12, 1000)
    assert np.abs(signal[2] - (signal[1] - signal[0])).max() < 0.01
    assert 0.3 < np.abs(signal).max() < 5  # millivolts


def test_a_twin_decodes_like_the_original(tmp_path: Path) -> None:
    write_twin(DATASET, tmp_path, TwinSpec(num_patients=10))
    data = decode(DATASET, DATASET.locate(tmp_path), {"ecg": SignalModality()})
    assert data.card.synthetic
    assert data.samples["ecg"].shape == (len(data.index), 12, 1000)
    assert data.present["ecg"].all()
