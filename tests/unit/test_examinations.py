"""Medical examinations are read in the layouts of their downloads, and always in the same sample."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medfed.core.errors import DataError
from medfed.datasets.examinations import EXAMINATIONS, MEDQA, Question


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def mmlu(folder: Path, row: str = '"What, then?",a,b,c,d,C\n') -> None:
    write(folder / "data/test/anatomy_test.csv", row)


def medmcqa(folder: Path, right: int = 3) -> None:
    row = {"question": "What, then?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": right, "id": "x"}
    write(folder / "data/dev.json", json.dumps(row) + "\n")


def medqa(folder: Path, right: str = "C") -> None:
    row = {"question": "What, then?", "options": dict(zip("ABCD", "abcd", strict=True)), "answer_idx": right}
    write(folder / MEDQA, json.dumps(row) + "\n\n")


WRITERS: dict[str, Callable[[Path], None]] = {"mmlu-medical": mmlu, "medmcqa": medmcqa, "medqa": medqa}


@pytest.mark.parametrize("name", sorted(WRITERS))
@pytest.mark.parametrize("depth", ["", "one", "one/two/three"])
def test_a_choice_lists_its_options_by_letter(name: str, depth: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / depth)
    folder = EXAMINATIONS[name].find(tmp_path)
    assert folder == tmp_path / depth
    (question,) = EXAMINATIONS[name].sample(folder, 5)
    assert question.text == "What, then?\nA. a\nB. b\nC. c\nD. d\nAnswer with the letter of the right option."
    assert (question.answers, question.right) == (("A", "B", "C", "D"), 2)


def test_yes_and_no_are_asked_behind_the_conclusion_and_maybe_is_left_out(tmp_path: Path) -> None:
    rows = {
        str(number): {"QUESTION": "Does it help?", "LONG_ANSWER": "It did not.", "final_decision": decision}
        for number, decision in enumerate(("yes", "no", "maybe"))
    }
    write(tmp_path / "data/ori_pqal.json", json.dumps(rows))
    questions = EXAMINATIONS["pubmedqa"].sample(tmp_path, 5)
    assert sorted(questions) == [
        Question("0", "It did not.\nDoes it help? Answer yes or no.", ("yes", "no"), 0),
        Question("1", "It did not.\nDoes it help? Answer yes or no.", ("yes", "no"), 1),
    ]


def test_answered_questions_are_texts(tmp_path: Path) -> None:
    pair = '<QAPair pid="1"><Question>What  is it?</Question><Answer>A\nthing.</Answer></QAPair>'
    empty = '<QAPair pid="2"><Question>What?</Question><Answer/></QAPair>'
    write(tmp_path / "1_Some_QA/0001.xml", f"<Document><QAPairs>{pair}{empty}</QAPairs></Document>")
    assert EXAMINATIONS["medquad"].find(tmp_path) == tmp_path
    assert EXAMINATIONS["medquad"].sample(tmp_path, 5) == [Question("0001/1", "What is it?", ("A thing.",), 0)]


def test_the_packages_own_questions_are_balanced_and_distinct(tmp_path: Path) -> None:
    sample = EXAMINATIONS["sample"]
    folder = sample.find(tmp_path)
    assert folder is not None
    questions = sample.sample(folder, 100)
    assert len({one.text for one in questions}) == 40
    assert sum(one.right for one in questions) == 20


def test_a_sample_is_the_same_whatever_the_order_of_the_lines(tmp_path: Path) -> None:
    rows = [f"question {number},a,b,c,d,A\n" for number in range(20)]
    mmlu(tmp_path / "a", "".join(rows))
    first = EXAMINATIONS["mmlu-medical"].sample(tmp_path / "a", 5)
    assert len(first) == 5
    assert first == EXAMINATIONS["mmlu-medical"].sample(tmp_path / "a", 6)[:5]


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("mmlu-medical", lambda folder: mmlu(folder, "too,few\n")),
        ("mmlu-medical", lambda folder: mmlu(folder, "q,a,b,c,d,E\n")),
        ("mmlu-medical", lambda folder: mmlu(folder, "")),
        ("medmcqa", lambda folder: medmcqa(folder, 0)),
        ("medqa", lambda folder: medqa(folder, "E")),
        ("medmcqa", lambda folder: write(folder / "data/dev.json", "{")),
        ("pubmedqa", lambda folder: write(folder / "data/ori_pqal.json", "[]")),
        ("pubmedqa", lambda folder: write(folder / "data/ori_pqal.json", '{"7": {}}')),
        ("medquad", lambda folder: write(folder / "1_Some_QA/0001.xml", "<Document>")),
    ],
)
def test_what_is_not_in_the_layout_names_its_file(name: str, broken: Callable[[Path], None], tmp_path: Path) -> None:
    broken(tmp_path)
    with pytest.raises(DataError, match="download"):
        EXAMINATIONS[name].sample(tmp_path, 5)


def test_a_set_that_is_not_there_is_none(tmp_path: Path) -> None:
    found = {name: one.find(tmp_path) for name, one in EXAMINATIONS.items() if name != "sample"}
    assert set(found.values()) == {None}
