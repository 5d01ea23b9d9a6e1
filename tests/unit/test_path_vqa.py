"""PathVQA: both native layouts give the same questions; damaged files are named, with no word of a question."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from medfed.core.catalog import MODALITIES
from medfed.core.errors import DataError
from medfed.data.decode import decode, validate_index
from medfed.datasets.base import write_twin
from medfed.datasets.path_vqa import PathVqa
from medfed.study.data import TwinSpec

PRIVATE = "is Mr Doe's biopsy malignant?"
NAMES = {"train": "train", "validation": "val", "test": "test"}


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    write_twin(PathVqa(), tmp_path / "twin", TwinSpec(num_patients=30, image_size=32))
    return PathVqa().locate(tmp_path)


def shard(root: Path, split: str = "test") -> Path:
    return next(iter(sorted(root.glob(f"path-vqa/data/{split}-*.parquet"))))


def as_folder(root: Path, out: Path, suffix: str = ".json") -> Path:
    """Write the twin's questions again as the authors lay them out; return the folder above ``pvqa``."""
    for split, name in NAMES.items():
        images, lists = out / "pvqa" / "images" / name, out / "pvqa" / "qas" / name
        images.mkdir(parents=True)
        lists.mkdir(parents=True)
        rows = []
        for path in sorted(root.glob(f"path-vqa/data/{split}-*.parquet")):
            for row in pl.read_parquet(path).iter_rows(named=True):
                image = f"{name}_{len(rows):04d}"
                (images / f"{image}.jpg").write_bytes(row["image"]["bytes"])
                rows.append({"image": image, "question": row["question"], "answer": row["answer"]})
        lines = "\n".join(map(json.dumps, rows)) if suffix == ".jsonl" else json.dumps(rows)
        (lists / f"{name}_qa{suffix}").write_text(lines, encoding="utf-8")
    return out


def message(call: object) -> str:
    assert callable(call)
    with pytest.raises(DataError) as error:
        call()
    assert "next step:" in str(error.value)
    assert PRIVATE not in str(error.value)
    return str(error.value)


def test_only_yes_or_no_questions_are_read(twin: Path) -> None:
    index = PathVqa().index(twin)
    validate_index(PathVqa(), twin, index)
    written = pl.concat(pl.read_parquet(path) for path in twin.glob("path-vqa/data/*.parquet"))
    closed = written.filter(pl.col("answer").is_in(["yes", "no"]))
    assert 0 < len(index) == len(closed) < len(written)
    assert index["yes"].sum() == (closed["answer"] == "yes").sum()
    assert set(index["split"]) == {"train", "development", "test"}


def test_a_patient_is_an_image_whatever_question_is_asked(twin: Path) -> None:
    index = PathVqa().index(twin)
    written = pl.concat(pl.read_parquet(path) for path in twin.glob("path-vqa/data/*.parquet"))
    assert index["patient"].n_unique() == written["image"].struct.field("bytes").n_unique()


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_both_layouts_give_the_same_samples(twin: Path, tmp_path: Path, suffix: str) -> None:
    folder = as_folder(twin, tmp_path / "authors", suffix)
    one = decode(PathVqa(), twin, MODALITIES)
    other = decode(PathVqa(), PathVqa().locate(folder), MODALITIES)
    order = [
        np.lexsort((data.index["question"].to_numpy(), data.samples["image"].sum((1, 2, 3)))) for data in (one, other)
    ]
    for name in ("image", "question"):
        np.testing.assert_array_equal(one.samples[name][order[0]], other.samples[name][order[1]])
    assert one.index["yes"][order[0]].to_list() == other.index["yes"][order[1]].to_list()


def test_an_image_in_two_official_files_is_wholly_in_the_test_split(twin: Path) -> None:
    train, test = (pl.read_parquet(shard(twin, split)) for split in ("train", "test"))
    closed = test.filter(pl.col("answer").is_in(["yes", "no"])).head(1)
    pl.concat([train, closed]).write_parquet(shard(twin, "train"))
    index = PathVqa().index(twin)
    validate_index(PathVqa(), twin, index)
    moved = index.filter(pl.col("example").str.contains("train-"), split="test")
    assert len(moved) == 1


def test_a_pickle_alone_is_refused_and_not_opened(twin: Path, tmp_path: Path) -> None:
    folder = as_folder(twin, tmp_path / "authors")
    path = folder / "pvqa" / "qas" / "train" / "train_qa.pkl"
    path.with_suffix(".json").unlink()

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "boom",))  # type: ignore[return-value]

    path.write_bytes(pickle.dumps(Bomb()))
    text = message(lambda: PathVqa().index(folder))
    assert text.startswith(f"{path}: the questions are a pickle")
    assert "json.dump" in text
    assert not (tmp_path / "boom").exists()


def test_a_missing_image_is_named(twin: Path, tmp_path: Path) -> None:
    folder = as_folder(twin, tmp_path / "authors")
    record = PathVqa().index(folder).row(0, named=True)
    missing = folder / record["files"][0]
    missing.unlink()
    assert message(lambda: PathVqa().load(folder, record)).startswith(f"{missing}: the image is missing")


@pytest.mark.parametrize(("content", "words"), [(None, "not a readable"), (b"\xff\xd8\xff", "damaged|not a readable")])
def test_damaged_bytes_name_file_and_row(twin: Path, content: bytes | None, words: str) -> None:
    path = shard(twin)
    image = pl.Series([{"bytes": content, "path": None}], dtype=pl.Struct({"bytes": pl.Binary, "path": pl.Utf8}))
    pl.DataFrame({"image": image, "question": [PRIVATE], "answer": ["yes"]}).write_parquet(path)
    record = PathVqa().index(twin).filter(pl.col("question") == PRIVATE).row(0, named=True)
    text = message(lambda: PathVqa().load(twin, record))
    assert text.startswith(f"{path} (row 0, field 'image'): ")
    assert any(part in text for part in words.split("|"))


@pytest.mark.parametrize("field", ["question", "answer", "image"])
@pytest.mark.parametrize("value", [None, "", [PRIVATE], {"en": PRIVATE}])
def test_a_bad_field_is_named_with_file_and_record(twin: Path, tmp_path: Path, field: str, value: object) -> None:
    folder = as_folder(twin, tmp_path / "authors")
    path = folder / "pvqa" / "qas" / "val" / "val_qa.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    number = next(number for number, row in enumerate(rows) if row["answer"] in ("yes", "no"))
    rows[number][field] = value
    path.write_text(json.dumps(rows), encoding="utf-8")
    text = message(lambda: PathVqa().index(folder))
    assert text.startswith(f"{path}: record {number}: field {field!r} is ")


def test_a_shard_with_paths_for_images_is_refused(twin: Path) -> None:
    pl.DataFrame({"image": ["a.jpg"], "question": [PRIVATE], "answer": ["yes"]}).write_parquet(shard(twin))
    assert message(lambda: PathVqa().index(twin)).startswith(f"{shard(twin)}: column 'image' is of type String")


def test_a_file_of_no_official_split_is_named(twin: Path) -> None:
    path = shard(twin).rename(shard(twin).with_name("extra-00000-of-00001.parquet"))
    assert message(lambda: PathVqa().index(twin)).startswith(f"{path}: the file is of no official split")


def test_colour_becomes_luma(twin: Path) -> None:
    print("0.299 · 255 / 255 for pure red")
    content = io.BytesIO()
    Image.new("RGB", (32, 32), (255, 0, 0)).save(content, "PNG")
    image = pl.Series(
        [{"bytes": content.getvalue(), "path": None}], dtype=pl.Struct({"bytes": pl.Binary, "path": pl.Utf8})
    )
    pl.DataFrame({"image": image, "question": ["red?"], "answer": ["Yes"]}).write_parquet(shard(twin))
    record = PathVqa().index(twin).filter(question="red?").row(0, named=True)
    loaded = PathVqa().load(twin, record)
    assert loaded["image"].mean() == pytest.approx(0.299, abs=0.002)
    assert loaded["question"].tobytes() == b"red?"
