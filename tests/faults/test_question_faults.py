"""Damaged question files: each fault is answered with the file, the record, the field and a next step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from medfed.core.catalog import DATASETS
from medfed.core.errors import DataError
from medfed.data.decode import decode
from medfed.datasets.base import Dataset, write_twin
from medfed.modalities.image import ImageModality
from medfed.modalities.signal import SignalModality
from medfed.study.data import TwinSpec

MODALITIES = {"image": ImageModality(size=16), "ecg": SignalModality()}
TABLES = {
    "vqa-rad": "data_RAD/testset.json",
    "slake": "Slake1.0/train.json",
    "ecg-qa": "ecgqa/ptbxl/template/train/0.json",
}
each = pytest.mark.parametrize("name", TABLES)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("twins")
    for name in TABLES:
        write_twin(DATASETS[name], root / name, TwinSpec(num_patients=24, image_size=32))
    return root


@pytest.fixture
def copied(pristine: Path, tmp_path: Path) -> Callable[[str], tuple[Dataset, Path, Path]]:
    """Copy a twin; return the dataset, its root and one of its question files."""

    def copy(name: str) -> tuple[Dataset, Path, Path]:
        root = shutil.copytree(pristine / name, tmp_path / name)
        return DATASETS[name], root, root / TABLES[name]

    return copy


Copied = Callable[[str], tuple[Dataset, Path, Path]]


def message(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as error:
        call()
    assert "next step:" in str(error.value)
    return str(error.value)


@each
@pytest.mark.parametrize(
    ("content", "words"),
    [(b"[{]", "not UTF-8 JSON"), (b"[" * 100_000, "not UTF-8 JSON"), (b"\xff\xfe[]", "not UTF-8"), (b"{}", "list")],
)
def test_a_file_that_is_no_list_of_records_is_named(name: str, content: bytes, words: str, copied: Copied) -> None:
    dataset, root, path = copied(name)
    path.write_bytes(content)
    text = message(lambda: dataset.index(root))
    assert text.startswith(f"{path}: ")
    assert words in text


def test_a_missing_file_is_named(copied: Copied) -> None:
    dataset, root, path = copied("vqa-rad")
    path.unlink()
    assert message(lambda: dataset.index(root)).startswith(f"{path}: the file is missing")
    dataset, root, path = copied("ecg-qa")
    path.unlink()
    assert message(lambda: dataset.index(root)).startswith(f"{path.parent}: the folder has no .json")


FIELDS = [
    ("vqa-rad", "question", ""),
    ("vqa-rad", "answer", ["yes"]),
    ("vqa-rad", "answer_type", "MAYBE"),
    ("vqa-rad", "image_name", "../../etc/passwd"),
    ("slake", "q_lang", None),
    ("slake", "question", None),
    ("slake", "answer", {}),
    ("slake", "answer_type", "yes"),
    ("slake", "img_name", "/etc/passwd"),
    ("ecg-qa", "question", None),
    ("ecg-qa", "question_type", None),
    ("ecg-qa", "attribute_type", []),
    ("ecg-qa", "answer", "yes"),
    ("ecg-qa", "answer", []),
    ("ecg-qa", "ecg_id", 7),
    ("ecg-qa", "ecg_id", [7]),
]


@pytest.mark.parametrize(("name", "field", "value"), FIELDS)
def test_a_bad_or_missing_field_is_named_with_file_and_record(
    name: str, field: str, value: object, copied: Copied
) -> None:
    dataset, root, path = copied(name)
    rows = json.loads(path.read_text(encoding="utf-8"))
    number = next(number for number, row in enumerate(rows) if row.get("q_lang", "en") == "en")
    whole = rows[number]
    for damaged in ({**whole, field: value}, {key: kept for key, kept in whole.items() if key != field}):
        rows[number] = damaged
        path.write_text(json.dumps(rows), encoding="utf-8")
        assert message(lambda: dataset.index(root)).startswith(f"{path}: record {number}: field {field!r} is ")


def test_an_ecg_that_ptbxl_lacks_is_named(copied: Copied) -> None:
    dataset, root, path = copied("ecg-qa")
    table = root / "ptb-xl" / "ptbxl_database.csv"
    ecg = json.loads(path.read_text(encoding="utf-8"))[0]["ecg_id"][0]
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join(line for line in lines if not line.startswith(f"{ecg},")), encoding="utf-8")
    assert f"{path}: record 0: field 'ecg_id' is {ecg}, which ptbxl_database.csv lacks" in message(
        lambda: dataset.index(root)
    )


def test_without_ptbxl_ecg_qa_says_so(copied: Copied) -> None:
    dataset, root, _ = copied("ecg-qa")
    shutil.rmtree(root / "ptb-xl")
    assert "no PTB-XL here" in message(lambda: dataset.locate(root))


@pytest.mark.parametrize(("name", "field"), [("vqa-rad", "image_name"), ("slake", "img_name")])
def test_a_missing_image_names_the_record_that_asks_for_it(name: str, field: str, copied: Copied) -> None:
    dataset, root, _ = copied(name)
    record = dataset.index(root).row(3, named=True)
    missing = root / record["files"][0]
    missing.unlink()
    stem, number = record["example"].split(":")[1:]
    text = message(lambda: dataset.load(root, record))
    assert str(missing) in text
    assert f"{stem}.json (record {number}, field {field!r}) names it" in text
    problems = [problem for problem in dataset.check(root) if problem]
    assert {problem.where for problem in problems} == {str(missing)}
    decoded = decode(dataset, root, MODALITIES, skip_bad=True)
    assert len(decoded.skipped) == len(problems) > 0


def test_a_language_that_is_not_there_is_named(copied: Copied) -> None:
    dataset, root, _ = copied("slake")
    for path in (root / "Slake1.0").glob("*.json"):
        rows = [row for row in json.loads(path.read_text(encoding="utf-8")) if row["q_lang"] == "zh"]
        path.write_text(json.dumps(rows), encoding="utf-8")
    assert "no question has 'q_lang' 'en'" in message(lambda: dataset.index(root))
