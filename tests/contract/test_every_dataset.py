"""What every registered dataset honours, on its synthetic twin: a new one is tested here by being registered."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from medfed.core.catalog import DATASETS, MODALITIES, TASKS
from medfed.core.errors import DataError
from medfed.data import cache as decoded_cache
from medfed.data.cache import DecodedCache
from medfed.data.decode import decode, validate_index
from medfed.datasets.base import Dataset, write_twin
from medfed.modalities.image import ImageModality
from medfed.study.data import TwinSpec
from medfed.tasks.base import Task

SAMPLES = {**MODALITIES, "image": ImageModality(size=16)}
COLUMNS = {"example", "patient", "site", "split", "files"}
SPLITS = {"private", "public", "development", "test", "train", None}
PATIENTS = 10
each = pytest.mark.parametrize("dataset", DATASETS.values(), ids=lambda dataset: dataset.name)


def twin(dataset: Dataset, root: Path, seed: int = 0) -> Path:
    write_twin(dataset, root, TwinSpec(num_patients=PATIENTS, image_size=32, seed=seed))
    return root


def checksums(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@each
def test_a_twin_is_a_function_of_its_spec(dataset: Dataset, tmp_path: Path) -> None:
    first, again = checksums(twin(dataset, tmp_path / "a")), checksums(twin(dataset, tmp_path / "b"))
    assert first == again
    assert first != checksums(twin(dataset, tmp_path / "c", seed=1))


@each
def test_a_twin_is_found_indexed_and_decoded(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_cache, "SETTLED_SECONDS", 0)
    twin(dataset, tmp_path / "below")
    root = dataset.locate(tmp_path)
    assert root == tmp_path / "below"
    index = dataset.index(root)
    validate_index(dataset, root, index)
    assert COLUMNS | set(dataset.targets) <= set(index.columns)
    assert set(index["split"]) <= SPLITS
    cache = DecodedCache(tmp_path / "cache")
    decoded = decode(dataset, root, SAMPLES, cache=cache)
    with monkeypatch.context() as context:
        context.setattr(type(dataset), "load", lambda *args: pytest.fail("it was decoded again"))
        kept = decode(dataset, root, SAMPLES, cache=cache)
    for kind in ("samples", "present", "truths"):
        before, after = getattr(decoded, kind), getattr(kept, kind)
        assert before.keys() == after.keys()
        assert all(before[name].dtype == after[name].dtype for name in before)
        assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert decoded.card.synthetic
    assert not decoded.skipped
    has_one = np.any([decoded.present[name] for name in dataset.modalities], axis=0)
    assert has_one.all(), "an example has no modality at all"
    for name in dataset.modalities:
        assert decoded.present[name].any(), f"no example has {name!r}"
        assert np.isfinite(decoded.samples[name]).all()
        assert not decoded.samples[name][~decoded.present[name]].any(), "an absent sample is not zero"


@each
def test_files_of_an_index_stay_inside_the_root_and_some_exist(dataset: Dataset, tmp_path: Path) -> None:
    """An example may name no file (a question about tables alone), but not only files that are not there."""
    root = twin(dataset, tmp_path)
    named = dataset.index(root)["files"].to_list()
    assert any(named)
    for files in named:
        paths = [root / file for file in files]
        assert not paths or any(path.is_file() for path in paths)
        assert all(path.resolve().is_relative_to(root.resolve()) for path in paths)


@each
def test_a_twin_is_not_taken_for_another_dataset(dataset: Dataset, tmp_path: Path) -> None:
    """Only those that read the same published folder (two languages of one file) share its marker."""
    twin(dataset, tmp_path)
    for other in DATASETS.values():
        if other.marker != dataset.marker:
            with pytest.raises(DataError):
                other.locate(tmp_path)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_task_reads_what_its_dataset_has(task: Task, tmp_path: Path) -> None:
    dataset = DATASETS[task.dataset]
    assert set(task.modalities) <= set(dataset.modalities)
    assert set(task.target_columns) <= set(dataset.index(twin(dataset, tmp_path)).columns)
