"""Every question-answering dataset keeps its contract: text columns, kinds in the release's shares, patients apart."""

from __future__ import annotations

import hashlib
from pathlib import Path

import polars as pl
import pytest

from medfed.core.catalog import DATASETS
from medfed.core.errors import DataError
from medfed.data.decode import decode, validate_index
from medfed.datasets.base import Dataset, write_twin
from medfed.modalities.image import ImageModality
from medfed.modalities.signal import SignalModality
from medfed.study.data import TwinSpec

MODALITIES = {"image": ImageModality(size=16), "ecg": SignalModality()}
QUESTION_DATASETS = tuple(  # those asked of the LLM; in the others the question is an input of the clients' model
    dataset for dataset in DATASETS.values() if dataset.targets == ("answer",) and "question" not in dataset.modalities
)
SHARES = {  # closed among all, yes among closed: of the release, or what its authors drew
    "vqa-rad": (0.575, 0.50),
    "slake": (0.40, 0.43),
    "slake-zh": (0.40, 0.43),
    "ecg-qa": (0.60, 0.30),
}
YES = ("yes", "是")
each = pytest.mark.parametrize("dataset", QUESTION_DATASETS, ids=lambda dataset: dataset.name)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("twins")
    for dataset in (*QUESTION_DATASETS, DATASETS["ptbxl"]):
        write_twin(dataset, root / dataset.name, TwinSpec(num_patients=300, image_size=32))
    return root


def test_every_question_dataset_has_its_shares() -> None:
    assert {dataset.name for dataset in QUESTION_DATASETS} == set(SHARES)


@each
def test_a_twin_is_found_among_the_others_and_decodes_whole(dataset: Dataset, twins: Path) -> None:
    root = dataset.locate(twins)
    assert root == dataset.locate(root) == twins / dataset.name
    decoded = decode(dataset, root, MODALITIES)
    assert decoded.card.synthetic
    assert decoded.present[dataset.modalities[0]].all()
    assert set(decoded.index["split"]) >= {"train", "test"}


@each
def test_questions_and_answers_are_text(dataset: Dataset, twins: Path) -> None:
    index = dataset.index(twins / dataset.name)
    for column in ("question", "answer"):
        assert index[column].dtype == pl.Utf8
        assert index[column].str.strip_chars().str.len_chars().min() > 0
    assert index["closed"].dtype == pl.Boolean
    assert index.group_by("patient").len()["len"].min() >= 1
    assert index.select("files", "question").is_duplicated().sum() == 0


@each
def test_closed_and_yes_shares_follow_the_release(dataset: Dataset, twins: Path) -> None:
    index = dataset.index(twins / dataset.name)
    closed = index.filter("closed")
    expected_closed, expected_yes = SHARES[dataset.name]
    print("four standard errors of a share near one half")
    assert index["closed"].mean() == pytest.approx(expected_closed, abs=2 / len(index) ** 0.5)
    share = closed["answer"].str.to_lowercase().is_in(YES).mean()
    assert share == pytest.approx(expected_yes, abs=2 / len(closed) ** 0.5)


@each
def test_a_twin_is_byte_identical_and_follows_its_seed(dataset: Dataset, tmp_path: Path) -> None:
    def content(name: str, seed: int) -> str:
        write_twin(dataset, tmp_path / name, TwinSpec(num_patients=5, seed=seed, image_size=32))
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file() and path.name[0] != "S")
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

    assert content("a", 1) == content("b", 1) != content("c", 2)


def test_a_twin_is_not_taken_for_another_dataset(twins: Path) -> None:
    assert DATASETS["ptbxl"].locate(twins) == twins / "ptbxl"
    with pytest.raises(DataError, match="no PTB-XL here"):
        DATASETS["ptbxl"].locate(twins / "ecg-qa")
    own, other = (DATASETS[name].index(twins / name) for name in ("ecg-qa", "ptbxl"))
    assert not set(own["patient"]) & set(other["patient"])


COUNTS = {  # of the extracts: questions, closed ones, patients
    "vqa-rad": (2421, 1393, 217),
    "slake": (1053, 422, 96),
    "slake-zh": (1046, 422, 96),
    "ecg-qa": (258, 258, 101),
}


@each
def test_real_extracts(dataset: Dataset, real_data: Path) -> None:
    root = dataset.locate(real_data)
    index = dataset.index(root)
    validate_index(dataset, root, index)
    assert (len(index), index["closed"].sum(), index["patient"].n_unique()) == COUNTS[dataset.name]
    assert not dataset.card_at(root).synthetic
    if dataset.name in ("slake", "slake-zh"):  # the extract has the questions only
        with pytest.raises(DataError, match=r"validate.json \(record \d+, field 'img_name'\) names it"):
            dataset.load(root, index.row(0, named=True))
        return
    assert dataset.load(root, index.row(0, named=True))[dataset.modalities[0]].ndim == 2


def test_real_ecg_qa_is_about_patients_of_ptbxl(real_data: Path) -> None:
    ecgs = DATASETS["ptbxl"]
    assert ecgs.locate(real_data) == real_data / "ptbxl"
    known = ecgs.index(real_data / "ptbxl")
    assert set(DATASETS["ecg-qa"].index(DATASETS["ecg-qa"].locate(real_data))["patient"]) <= set(known["patient"])
