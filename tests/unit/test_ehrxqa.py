"""EHRXQA: answers are true of what the tables and the film say; faults are named without a patient's words."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from medfed.core.catalog import MODALITIES
from medfed.core.errors import DataError
from medfed.data.decode import decode, validate_index
from medfed.datasets.base import write_twin
from medfed.datasets.ehrxqa import MOST_CHARACTERS, Ehrxqa, Line, answer_text, answer_type, read_records, record_text
from medfed.datasets.questions import Entry
from medfed.study.data import TwinSpec
from medfed.twins.chest_cohorts import draw_films
from medfed.twins.ehrxqa import ATTRIBUTES, EHRXQA

SPEC = TwinSpec(num_patients=40, image_size=32)
PRIVATE = "has Mr Doe been diagnosed with gout?"
QUESTIONS, DATABASE = "dataset/mimic_iv_cxr", "database/mimic_iv_cxr"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ehrxqa")
    write_twin(Ehrxqa(), root, SPEC)
    return root


@pytest.fixture
def twin(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "twin"))


def words_of(twin: Path, record: dict[str, object], name: str = "ehr") -> str:
    return Ehrxqa().load(twin, record)[name].tobytes().decode()


def message(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as error:
        call()
    assert "next step:" in str(error.value)
    assert PRIVATE not in str(error.value)
    return str(error.value)


def damage(twin: Path, change: Callable[[dict[str, object]], None], file: str = "train") -> Path:
    path = twin / QUESTIONS / f"{file}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    change(rows[1])
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_a_twin_decodes_whole_and_images_are_absent_where_none_is_asked_about(twin: Path) -> None:
    data = decode(Ehrxqa(), Ehrxqa().locate(twin.parent), MODALITIES)
    validate_index(Ehrxqa(), twin, data.index)
    assert data.card.synthetic
    assert set(data.index["scope"]) == {"image", "table", "joint"}
    assert data.present["image"].tolist() == (data.index["scope"] != "table").to_list()
    assert data.present["question"].all()
    assert data.present["ehr"].all()
    assert set(data.index["split"]) == {"train", "development", "test"}


def test_every_answer_is_true_of_film_and_record(pristine: Path) -> None:
    films = {f"mimic:{10_000_000 + 37 * film.patient}": film for film in draw_films(EHRXQA, SPEC)}
    term = {word: name for name, word in ATTRIBUTES.items()}
    checked = set()
    for record in Ehrxqa().index(pristine).iter_rows(named=True):
        question, answer, ehr = record["question"], record["answer"], words_of(pristine, record)
        seen = re.search(r"(?:is there|a study with) ([^?]+)\?", question)
        asked = re.search(r"diagnosed with (.+?)(?: and also|\?)", question)
        if seen or asked:
            there = getattr(films[record["patient"]].findings, term[seen[1]]) > 0 if seen else True
            assert answer == ("yes" if there and (not asked or f"diagnosis {asked[1]}" in ehr) else "no")
        elif "drug" in question:
            assert answer == re.findall(r"prescription (\w+)", ehr)[0]
        elif "admissions" in question:
            assert int(answer) == ehr.count("admission urgent")
        elif "gender" in question:
            assert f"gender {answer}" in ehr
        elif match := re.search(r"last value of (\w+)", question):
            assert f"lab {match[1]} {answer} " in ehr
        else:
            pytest.fail("a question of an unknown kind")
        checked.add((record["scope"], answer if answer in ("yes", "no") else "other"))
    assert len(checked) == 7  # yes and no of all three scopes, other answers of tables only


def test_neither_ids_nor_their_digits_are_in_what_the_model_reads(twin: Path) -> None:
    for record in Ehrxqa().index(twin).iter_rows(named=True):
        loaded = words_of(twin, record) + words_of(twin, record, "question")
        assert record["subject"] not in loaded
        assert record["study"] is None or record["study"] not in loaded


def test_train_and_valid_ask_about_the_same_patients_who_then_have_one_split(twin: Path) -> None:
    files = {}
    for name in ("train", "valid", "test"):
        rows = json.loads((twin / QUESTIONS / f"{name}.json").read_text(encoding="utf-8"))
        files[name] = {row["value"].get("patient_id") for row in rows} - {None}
    assert files["train"] & files["valid"]
    assert not files["test"] & (files["train"] | files["valid"])
    assert Ehrxqa().index(twin).group_by("patient").agg(pl.col("split").n_unique())["split"].max() == 1


def test_a_database_reads_as_its_tables_do(twin: Path) -> None:
    folder = twin / DATABASE / "train"
    tables = {path.stem: pl.read_csv(path, infer_schema=False) for path in folder.glob("*.csv")}
    before = dict(read_records(folder))
    with closing(sqlite3.connect(folder / "mimic_iv_cxr.db")) as database:
        for name, table in tables.items():  # upper case, as in the authors' schema
            columns = ", ".join(column.upper() for column in table.columns)
            marks = ", ".join("?" * len(table.columns))
            database.execute(f"create table {name.upper()} ({columns})")
            database.executemany(f"insert into {name.upper()} values ({marks})", table.rows())  # noqa: S608
        database.commit()
    for path in folder.glob("*.csv"):
        path.unlink()
    assert dict(read_records(folder)) == before


def test_a_record_leads_with_what_is_asked_and_has_an_end() -> None:
    lines = tuple(
        Line(f"2105-01-{day:02d}", words)
        for day, words in ((9, "discharge home"), (8, "prescription heparin"), (7, "diagnosis gout"), (6, "lab iron 1"))
    )
    assert record_text(lines, "was gout diagnosed?").startswith("diagnosis gout 2105-01-07; discharge home 2105-01-09")
    assert record_text(lines, "what was prescribed?").startswith("prescription heparin")
    assert record_text(lines, "?").startswith("discharge home")
    assert len(record_text(lines * 500, "?")) == MOST_CHARACTERS


@pytest.mark.parametrize(
    ("q_tag", "answer", "expected", "kind"),
    [
        ("has_verb patient {patient_id} been ill?", [1], "yes", "yes"),
        ("given the study {study_id}, are there any ${category}?", [0], "no", "no"),
        ("count the number of visits.", [1], "1", "number"),
        ("what is the value?", [1.5], "1.5", "number"),
        ("what is the value?", [7.0], "7", "number"),
        ("what is the value?", [0.1 + 0.2], "0.3", "number"),
        ("list all drugs.", ["Insulin", "aspirin", "insulin"], "aspirin, insulin", "text"),
        ("is it so?", [True], "yes", "yes"),
        ("list all drugs.", [], "none", "none"),
        ("list all drugs.", [None], "none", "none"),
        ("what is_verb the gender?", "M", "m", "text"),
    ],
)
def test_answers_are_short_normal_texts(q_tag: str, answer: object, expected: str, kind: str, tmp_path: Path) -> None:
    assert answer_text(Entry({"q_tag": q_tag, "answer": answer}, tmp_path, 0)) == expected
    assert answer_type(expected) == kind


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("question", None, "field 'question' is of type NoneType"),
        ("question", [PRIVATE], "field 'question' is of type list"),
        ("query", {}, "field 'query' is of type dict"),
        ("value", [PRIVATE], "field 'value' is of type list"),
        ("value", {"patient_id": PRIVATE}, "field 'value.patient_id' is of type str"),
        ("answer", [{"text": PRIVATE}], "field 'answer' holds a value of type dict"),
        ("q_tag", "", "field 'q_tag' is empty"),
    ],
)
def test_a_bad_field_is_named_with_file_and_record(twin: Path, field: str, value: object, words: str) -> None:
    path = damage(twin, lambda row: row.update({field: value}))
    assert message(lambda: Ehrxqa().index(twin)).startswith(f"{path}: record 1: {words}")


def test_question_files_without_answers_say_where_answers_come_from(twin: Path) -> None:
    path = damage(twin, lambda row: row.pop("answer"), "valid")
    text = message(lambda: Ehrxqa().index(twin))
    assert text.startswith(f"{path}: record 1: field 'answer' is missing")
    assert "build_dataset.sh" in text


def test_questions_about_all_patients_are_left_out(twin: Path) -> None:
    before = len(Ehrxqa().index(twin))
    damage(twin, lambda row: row.update(value={"gender": "f"}))
    assert len(Ehrxqa().index(twin)) == before - 1


def test_a_missing_image_is_named(twin: Path) -> None:
    record = Ehrxqa().index(twin).filter(scope="image").row(0, named=True)
    missing = twin / record["files"][0]
    missing.unlink()
    assert message(lambda: Ehrxqa().load(twin, record)).startswith(f"{missing}: the image is missing")


@pytest.mark.parametrize(("table", "scope"), [("patients", "table"), ("tb_cxr", "image")])
def test_a_patient_or_film_that_the_tables_lack_is_told_by_example(twin: Path, table: str, scope: str) -> None:
    record = Ehrxqa().index(twin).filter(scope=scope, database="test").row(0, named=True)
    path = twin / DATABASE / "test" / f"{table}.csv"
    names = [path] if table == "tb_cxr" else list(path.parent.glob("*.csv"))
    for name in names:
        lines = name.read_text(encoding="utf-8").splitlines(keepends=True)
        name.write_text("".join(line for line in lines if record["subject"] not in line), encoding="utf-8")
    record = Ehrxqa().index(twin).filter(example=record["example"]).row(0, named=True)
    text = message(lambda: Ehrxqa().load(twin, record))
    assert text.startswith(f"{path}: example {record['example']!r} asks about")


def test_a_table_without_its_column_is_named(twin: Path) -> None:
    path = twin / DATABASE / "train" / "labevents.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("valuenum", "value"), encoding="utf-8")
    record = Ehrxqa().index(twin).filter(database="train").row(0, named=True)
    assert message(lambda: Ehrxqa().load(twin, record)).startswith(f"{path}: column 'valuenum' is missing")


def test_a_folder_that_is_no_database_is_named(twin: Path) -> None:
    for path in (twin / DATABASE / "train").glob("*.csv"):
        path.unlink()
    database = twin / DATABASE / "train" / "mimic_iv_cxr.db"
    database.write_bytes(b"not a database, but long enough to be one" * 100)
    assert message(lambda: Ehrxqa().index(twin)).startswith(f"{database}: not a readable SQLite database")


def test_images_beside_the_questions_are_found(twin: Path) -> None:
    (twin / "mimic-cxr-jpg").rename(twin.parent / "mimic-cxr-jpg-2.1.0")
    record = Ehrxqa().index(twin).filter(scope="image").row(0, named=True)
    assert Ehrxqa().load(twin, record)["image"].shape == (32, 32)
