"""An LLM alone, by command and in Python: likelihoods, answers in words, examinations, and what is said of mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

import medfed
from medfed.cli.app import app
from medfed.core.errors import StudyError
from medfed.llm.language_model import LanguageModel, _facts, odds_of, open_language_model
from medfed.llm.obtain.cached import Origin, write_fingerprint
from support.llm_toys import write_model

QUESTIONS = ["Is it round?", "Is it red?", "Is it a shape?"]
ORIGIN = Origin(title="toy", licence=None, source="here", dtype="float32", num_parameters=1, tied=False)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llm") / "toy", "llama")


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def plain(folder: Path, question: str, answer: str) -> float:
    """Log-likelihood by one forward of transformers."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    start = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
    answered = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*start, *answered]])).logits[0].log_softmax(-1)
    return sum(float(logits[len(start) - 1 + n, token]) for n, token in enumerate(answered))


def test_the_command_gives_what_plain_transformers_gives(llm: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_text("\n".join([*QUESTIONS, "", " "]), encoding="utf-8")
    words = ("ask", "--llm", llm, "--file", file, "--answers", "Yes,No,Never", "--cache", tmp_path, "--json")
    ran = invoke(*words)
    assert ran.exit_code == 0, ran.output
    rows = json.loads(ran.stdout)
    assert [row["question"] for row in rows] == QUESTIONS
    for row in rows:
        expected = {answer: plain(llm, row["question"], answer) for answer in ("Yes", "No", "Never")}
        assert row["log_likelihood"] == pytest.approx(expected, abs=1e-4)
        others = np.logaddexp(expected["No"], expected["Never"])
        assert row["log_odds"]["Yes"] == pytest.approx(expected["Yes"] - others, abs=1e-4)
    assert (tmp_path / "likelihoods.sqlite").stat().st_size > 0
    assert json.loads(invoke(*words).stdout) == rows


def test_one_question_is_printed_as_a_table(llm: Path, tmp_path: Path) -> None:
    ran = invoke("ask", "--llm", llm, "Is it round?", "--answers", "Yes,No", "--cache", tmp_path)
    assert ran.exit_code == 0, ran.output
    assert "Is it round?" in ran.stdout
    assert "log-odds Yes" in ran.stdout


def test_the_odds_of_two_answers_are_opposite() -> None:
    odds = odds_of(np.array([[-1.0, -3.0], [-2.0, -2.0]]))
    assert odds == pytest.approx(np.array([[2.0, -2.0], [0.0, 0.0]]))


def test_words_are_those_of_transformers_and_a_cut_is_marked(llm: Path, tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llm), AutoTokenizer.from_pretrained(llm)
    prompt = tokenizer("Question: Is it red?\nAnswer:", return_tensors="pt")
    made = model.generate(**prompt, do_sample=False, max_new_tokens=6, pad_token_id=0)[0, prompt.input_ids.shape[1] :]
    expected = tokenizer.decode(made, skip_special_tokens=True).partition("\n")[0].partition("Question:")[0].strip()
    ran = invoke("ask", "--llm", llm, "Is it red?", "--max-new-tokens", 6, "--cache", tmp_path, "--json")
    assert ran.exit_code == 0, ran.output
    (row,) = json.loads(ran.stdout)
    assert row["text"] == expected
    assert row["cut"] is (int(made[-1]) != tokenizer.eos_token_id)
    assert f"cut after {6} tokens" in invoke(
        "ask", "--llm", llm, "Is it red?", "--max-new-tokens", 6, "--cache", tmp_path
    ).stdout.replace("\n", " ")


def test_an_answer_that_ends_is_not_cut(llm: Path, tmp_path: Path) -> None:
    model = open_language_model(llm, tmp_path)
    first = model.foundation.tokenizer
    whole = model.answer("Is it red?", 6)
    ids = first.encode(f" {whole.text}")
    first.ends = frozenset({*first.ends, ids[2]})
    again = model.answer("Is it red?", 6)
    assert not again.cut
    assert whole.text.startswith(again.text)
    assert len(again.text) < len(whole.text)


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        (["--llm", "smollm3", "Is it?"], "no LLM goes by this name", "medfed foundation get NAME"),
        (["--llm", "smollm2-135m", "Is it?"], "not in the cache", "medfed foundation get smollm2-135m"),
        (["--llm", "LLM"], "one question, or a file", "medfed ask"),
        (["--llm", "LLM", "Is it?", "--file", "x"], "one question, or a file", "medfed ask"),
        (["--llm", "LLM", "--file", "absent.txt"], "cannot read the questions", "UTF-8"),
        (["--llm", "LLM", "--file", "empty.txt"], "no question in the file", "one a line"),
        (["--llm", "LLM", "Is it?", "--answers", "Yes"], "two or more", "yes,no"),
        (["--llm", "LLM", "Is it?", "--dtype", "float8"], "dtype 'float8'", "float32"),
    ],
)
def test_a_mistake_is_named_with_its_next_step(
    words: list[str], what: str, hint: str, llm: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    given = [str(llm) if word == "LLM" else str(tmp_path / word) if word.endswith(".txt") else word for word in words]
    error = invoke("ask", *given, "--cache", tmp_path).exception
    assert isinstance(error, StudyError)
    assert what in error.what
    assert hint in (error.hint or "")


def test_a_folder_that_changed_does_not_answer(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "toy", "llama")
    write_fingerprint(folder, ORIGIN)
    open_language_model(folder, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StudyError, match="changed since it was written"):
        open_language_model(folder, tmp_path)


@pytest.mark.parametrize(("given", "expected"), [(None, torch.bfloat16), ("float32", torch.float32)])
def test_the_dtype_is_that_of_the_folder_unless_one_is_given(
    given: str | None, expected: torch.dtype, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "toy", "llama")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert open_language_model(folder, tmp_path, given).foundation.table.dtype == expected


def test_python_opens_the_same_llm(llm: Path, tmp_path: Path) -> None:
    model = medfed.foundation(llm, cache=tmp_path)
    assert isinstance(model, LanguageModel)
    both = model.likelihood(QUESTIONS, ("Yes", "No"))
    assert both.shape == (3, 2)
    assert model.log_odds(QUESTIONS) == pytest.approx(both[:, 0] - both[:, 1])
    assert both[0, 0] == pytest.approx(plain(llm, QUESTIONS[0], "Yes"), abs=1e-4)


def test_examinations_are_scored_with_intervals_and_chance(llm: Path, tmp_path: Path) -> None:
    place = tmp_path / "root" / "medmcqa" / "data" / "dev.json"
    place.parent.mkdir(parents=True)
    row = '{"id": "%d", "question": "What %d?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 2}\n'
    place.write_text("".join(row % (number, number) for number in range(20)), encoding="utf-8")
    words = ["foundation", "examine", llm, "--data-root", place.parents[2], "--num-questions", 12, "--cache", tmp_path]
    ran = invoke(*words, "--json")
    assert ran.exit_code == 0, ran.output
    rows = {(row["task"], row["model"]): row for row in json.loads(ran.stdout)["rows"] if row["primary"]}
    assert {task for task, _ in rows} == {"sample", "medmcqa"}
    assert rows["medmcqa", "llm"]["n"] == 12
    assert rows["medmcqa", "always-b"]["value"] == 1.0
    assert rows["sample", "llm"]["ci_low"] <= rows["sample", "llm"]["value"] <= rows["sample", "llm"]["ci_high"]
    table = invoke(*words, "--sets", "sample").stdout
    assert "Forty questions of the package" in table
    assert "MedMCQA" not in table
    assert "0.5" in table
    error = invoke(*words, "--sets", "medqa").exception
    assert isinstance(error, StudyError)
    assert "MedQA is not here" in error.what


def test_likelihoods_of_another_number_of_threads_are_not_taken(llm: Path, tmp_path: Path) -> None:
    model = open_language_model(llm, tmp_path)
    before = torch.get_num_threads()
    scopes = {_facts(model.foundation).get("threads")}
    try:
        torch.set_num_threads(before + 1)
        scopes.add(_facts(model.foundation).get("threads"))
    finally:
        torch.set_num_threads(before)
    assert len(scopes) == 2
