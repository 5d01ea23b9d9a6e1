"""Asking a finished run: the numbers of its own evaluation, the same alone and in batches, one at a time or by CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

import medfed as medfed_package
from medfed.ask.asking import Request, answer_all, ask, prepared
from medfed.ask.inputs import Kind, read_files
from medfed.ask.page.app import Play
from medfed.cli.app import app
from medfed.core.catalog import TASKS
from medfed.core.errors import DataError, MedfedError, RunError, StudyError
from medfed.llm.decoding import Decoded
from medfed.modalities.base import Moments
from medfed.records.folder import RunFolder
from medfed.records.schema import CardFile
from medfed.runs.loaded import LoadedRun
from support.finished_runs import QuickRun
from support.loaded import probabilities

EFFUSION, WHERE = "Is there a pleural effusion?", "Where is the lesion?"


@pytest.fixture(scope="module")
def run(quick: QuickRun) -> LoadedRun:
    return quick.load()


def requests(quick: QuickRun) -> list[Request]:
    """Questions of every kind, mixed."""
    images = [
        Request({"image": path}, question=(EFFUSION, WHERE, TASKS["ped"].question, "Is it large?")[number % 4])
        for number, path in enumerate(quick.images[:8])
    ]
    ecgs = [
        Request({"ecg": path}, question=(None, "Which lead is noisy?")[n % 2]) for n, path in enumerate(quick.ecgs[:4])
    ]
    own = [Request({"image": path}, "lod", None, ("left", "right", "both sides")) for path in quick.images[:2]]
    return [*images[:3], *ecgs, *own, *images[3:], Request({"icu": quick.icu})]


def medfed(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def predict(quick: QuickRun, *words: object) -> Result:
    return medfed("predict", quick.folder, "--cache", quick.cache, *words)


def test_answers_in_a_batch_are_those_given_one_by_one(quick: QuickRun, run: LoadedRun) -> None:
    asked = requests(quick)
    together = answer_all(run, [prepared(run, request) for request in asked])
    alone = [ask(run, request) for request in asked]
    for one, other in zip(together, alone, strict=True):
        assert (one.task, one.question, one.answer, one.experts) == (
            other.task, other.question, other.answer, other.experts,
        )  # fmt: skip
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
        if other.probabilities:
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert {answer.probabilities is None for answer in together} == {True, False}


@pytest.mark.parametrize(("task", "kind"), [("lod", "image"), ("ead", "ecg")])
def test_the_probabilities_are_those_of_the_runs_own_evaluation(
    quick: QuickRun, run: LoadedRun, task: str, kind: Kind
) -> None:
    files = quick.images if kind == "image" else quick.ecgs
    cases = [prepared(run, Request({kind: path}, task)) for path in files]
    said = np.array([answer.probabilities["Yes"] for answer in answer_all(run, cases) if answer.probabilities])
    lines = (quick.folder / "predictions" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    scored = np.array([json.loads(line)["responses"]["fedkim"][1] for line in lines])
    assert len(scored) >= 2
    nearest = np.abs(said[:, None] - scored[None]).min(0)
    assert nearest.max() < 1e-5  # every test example's score is that of one of the files
    assert np.ptp(said) > 1e-3


def test_the_sureness_of_words_is_the_mean_per_token_of_what_closed_scoring_compares(
    quick: QuickRun, run: LoadedRun
) -> None:
    texts = ("left lower lobe", "yes")
    case = prepared(run, Request({"image": quick.images[0]}, "mr", WHERE, texts))
    (compared,) = run.scores(case.plan.task, [case.samples], [WHERE])
    lengths = [len(ids) for ids in run.injector.injected.prompt(case.plan.task).answers]
    assert lengths[0] > 1
    sure = [run.sureness(case.plan.task, case.samples, WHERE, text) for text in texts]
    whole = [mean**length for mean, length in zip(sure, lengths, strict=True) if mean is not None]
    assert compared[0] / compared[1] == pytest.approx(whole[0] / whole[1], rel=1e-3)
    assert run.sureness(case.plan.task, case.samples, WHERE, "") is None


def test_experts_are_the_routers_for_the_task_and_not_the_file(quick: QuickRun, run: LoadedRun) -> None:
    answers = [ask(run, Request({"image": path}, "ped")) for path in quick.images[:2]]
    assert answers[0].experts == answers[1].experts
    weights = [one["weight"] for one in answers[0].experts]
    assert weights == sorted(weights, reverse=True)
    assert sum(weights) == pytest.approx(1, abs=1e-6)
    assert sorted(one["expert"] for one in answers[0].experts) == [1, 2, 3, 4]
    assert ask(run, Request({"ecg": quick.ecgs[0]}, "ead")).experts != answers[0].experts


def test_raw_arrays_are_asked_as_files_are(quick: QuickRun, run: LoadedRun) -> None:
    raw = read_files(run.study, {"ecg": quick.ecgs[0]})
    assert probabilities(run, TASKS["ead"], raw) == ask(run, Request({"ecg": quick.ecgs[0]}, "ead")).probabilities
    assert probabilities(run, TASKS["ead"], {}) != probabilities(run, TASKS["ead"], raw)


def test_a_question_that_is_a_modality_is_read_as_words(
    quick: QuickRun, run: LoadedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = run.study.model_copy(update={"encoders": {**run.study.encoders, "question": None}})
    monkeypatch.setattr(run, "study", study)
    monkeypatch.setattr(run, "moments", {**run.moments, "question": Moments.zero(1)})
    monkeypatch.setattr(run.injector.injected, "check", lambda task: None)
    case = prepared(run, Request({"image": quick.images[0]}, "path-vqa", "Is it a heart?"))
    batch = run.batch(case.plan.task, [case.samples, {}], ["Is it a heart?", ""])
    assert batch.present["question"].tolist() == batch.present["image"].tolist() == [True, False]
    assert int((batch.inputs["question"] > 0).sum()) == 5  # four words and the question mark


def test_one_question_on_the_command_line(quick: QuickRun) -> None:
    said = predict(quick, "--image", quick.images[0], "--question", EFFUSION, "--json")
    assert said.exit_code == 0, said.output
    answer = json.loads(said.stdout)
    assert answer["task"] == "mr"
    assert set(answer["probabilities"]) == {"No", "Yes"}
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    assert answer["probability"] == max(answer["probabilities"].values())
    assert len(answer["experts"]) == 4
    shown = predict(quick, "--icu", quick.icu).stdout
    assert f"task mp: {TASKS['mp'].question}" in " ".join(shown.split())
    assert "experts: " in shown


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--question", "Is it?"], StudyError, "nothing to look at"),
        (["--image", "nowhere.png", "--task", "lod"], DataError, "nowhere.png: no such file"),
        (["--image", "x.png", "--answers", "yes"], StudyError, "two or more"),
        (["--csv", "cases.csv"], RunError, "--csv and --out go together"),
        (["--csv", "a.csv", "--out", "b.csv", "--ecg", "r.hea"], RunError, "--ecg together with --csv"),
    ],
)
def test_a_mistake_is_one_message_and_an_exit_status(
    quick: QuickRun, words: Sequence[str], error: type[MedfedError], message: str
) -> None:
    done = predict(quick, *words)
    assert done.exit_code == 1
    assert isinstance(done.exception, error)
    assert message in str(done.exception)


def cases(place: Path, quick: QuickRun) -> Path:
    """A CSV of questions with two bad rows; the file of one is named relative to the CSV."""
    (place / "film.dcm").write_bytes(quick.images[0].read_bytes())
    (place / "cut.dcm").write_bytes(quick.images[0].read_bytes()[:2000])
    rows = [
        {"id": "a", "image": "film.dcm", "question": EFFUSION},
        {"id": "b", "image": "cut.dcm", "question": EFFUSION},
        {"id": "c", "ecg": str(quick.ecgs[0])},
        {"id": "d", "image": "film.dcm", "task": "nonsense"},
        {"id": "e", "image": "film.dcm", "question": "Which side?", "answers": "left, right"},
        {"id": "f", "icu": str(quick.icu)},
    ]
    return written(place / "cases.csv", rows)


def written(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    names = ["id", "image", "ecg", "icu", "task", "question", "answers"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_a_bad_row_does_not_lose_the_others_and_is_tried_again(quick: QuickRun, run: LoadedRun, tmp_path: Path) -> None:
    asked, out = cases(tmp_path, quick), tmp_path / "answers.csv"
    done = predict(quick, "--csv", asked, "--out", out)
    assert done.exit_code == 1
    assert "4 answered, 0 answered before, 2 not answered" in " ".join(done.output.split())
    rows = table(out)
    assert list(rows) == ["a", "b", "c", "d", "e", "f"]
    assert [name for name, row in rows.items() if row["error"]] == ["b", "d"]
    assert "cut.dcm" in rows["b"]["error"]
    assert "next step" in rows["d"]["error"]
    alone = ask(run, Request({"image": quick.images[0]}, question=EFFUSION))
    assert json.loads(rows["a"]["probabilities"]) == pytest.approx(alone.probabilities, abs=1e-5)
    assert set(json.loads(rows["e"]["probabilities"])) == {"left", "right"}

    (tmp_path / "cut.dcm").write_bytes(quick.images[1].read_bytes())
    again = predict(quick, "--csv", asked, "--out", out)
    assert "1 answered, 4 answered before, 1 not answered" in " ".join(again.output.split())
    mended = table(out)
    assert list(mended) == list(rows)
    assert mended["b"]["answer"]
    assert {name: mended[name] for name in "acef"} == {name: rows[name] for name in "acef"}


def test_answers_are_kept_when_it_is_stopped_midway(
    quick: QuickRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medfed.ask import batch as batch_asking

    asked, out = cases(tmp_path, quick), tmp_path / "answers.csv"
    monkeypatch.setattr(batch_asking, "CHUNK", 2)
    answered, calls = batch_asking.answer_all, []

    def stops(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answered(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(batch_asking, "answer_all", stops)
    with pytest.raises(KeyboardInterrupt):
        batch_asking.answer_table(quick.load(), batch_asking.open_tables(asked, out, quick.folder.name))
    assert list(table(out)) == ["a", "b", "c", "d"]

    monkeypatch.setattr(batch_asking, "answer_all", answered)
    run, name, whole = quick.load(), quick.folder.name, tmp_path / "undisturbed.csv"
    again = batch_asking.answer_table(run, batch_asking.open_tables(asked, out, name))
    assert again == batch_asking.Counts(answered=2, skipped=2, failed=2)
    batch_asking.answer_table(run, batch_asking.open_tables(asked, whole, name))
    assert out.read_text(encoding="utf-8") == whole.read_text(encoding="utf-8")


def asks(quick: QuickRun, csv_file: Path, out: Path) -> tuple[str, list[dict[str, str]]]:
    """What the command says, and the rows of its table."""
    done = predict(quick, "--csv", csv_file, "--out", out)
    assert isinstance(done.exception, SystemExit | None), done.exception
    return " ".join(done.output.split()), list(table(out).values())


def test_without_ids_an_answer_is_never_another_rows(quick: QuickRun, tmp_path: Path) -> None:
    file, out = tmp_path / "cases.csv", tmp_path / "answers.csv"
    lines = ["image,question,answers", f"{quick.images[0]},Where?,a;b", f"{quick.images[1]},Which side?,c;d"]
    file.write_text("\n".join(lines).replace(";", ",").replace(",a,b", ',"a,b"').replace(",c,d", ',"c,d"'), "utf-8")
    asks(quick, file, out)
    first, *others = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([first, f'{quick.images[2]},How large?,"e,f"', *others]), encoding="utf-8")
    said, rows = asks(quick, file, out)
    assert "3 answered, 0 answered before" in said
    assert [(row["id"], row["question"]) for row in rows] == [
        ("2", "How large?"),
        ("3", "Where?"),
        ("4", "Which side?"),
    ]
    file.write_text("\n".join([first, others[1]]), encoding="utf-8")
    assert [(row["id"], row["question"]) for row in asks(quick, file, out)[1]] == [("2", "Which side?")]


@pytest.mark.parametrize("changed", ["image", "content", "question", "answers", "task", "samples"])
def test_a_row_that_asks_something_else_is_asked_again(quick: QuickRun, tmp_path: Path, changed: str) -> None:
    films = [tmp_path / name for name in ("a.dcm", "b.dcm")]
    for film, image in zip(films, quick.images, strict=False):
        film.write_bytes(image.read_bytes())
    for suffix in (".hea", ".dat"):
        copied = tmp_path / quick.ecgs[0].with_suffix(suffix).name
        copied.write_bytes(quick.ecgs[0].with_suffix(suffix).read_bytes())
    row = {"id": "x", "image": "a.dcm", "task": "mr", "question": "Which side?", "answers": "left, right"}
    other = {"id": "y", "ecg": quick.ecgs[0].name, "task": "ead"}
    file, out = written(tmp_path / "cases.csv", [row, other]), tmp_path / "answers.csv"
    assert "2 answered, 0 answered before" in asks(quick, file, out)[0]
    assert "0 answered, 2 answered before" in asks(quick, file, out)[0]
    before = table(out)
    if changed == "content":
        films[0].write_bytes(films[1].read_bytes())
    elif changed == "samples":
        samples = (tmp_path / quick.ecgs[0].name).with_suffix(".dat")
        samples.write_bytes(bytes(samples.read_bytes()[::-1]))
    else:
        new = {"image": "b.dcm", "question": "Which part?", "answers": "up, down", "task": "ped"}[changed]
        written(file, [row | {changed: new}, other])
    assert "1 answered, 1 answered before" in asks(quick, file, out)[0]
    after = table(out)
    mine, kept = ("y", "x") if changed == "samples" else ("x", "y")
    assert after[kept] == before[kept]
    assert after[mine]["asked"] != before[mine]["asked"]
    (written_row,) = [row for row in table(out).values() if row["id"] == mine]
    written(tmp_path / "alone.csv", [r for r in csv.DictReader(file.open(encoding="utf-8")) if r["id"] == mine])
    asks(quick, tmp_path / "alone.csv", tmp_path / "fresh.csv")
    assert table(tmp_path / "fresh.csv")[mine] == written_row


def test_a_name_the_system_refuses_is_its_rows_error_alone(quick: QuickRun, tmp_path: Path) -> None:
    rows = [
        {"id": "long", "image": "x" * 300, "question": EFFUSION},
        {"id": "folder", "ecg": ".", "task": "ead"},
        {"id": "good", "image": str(quick.images[0]), "question": EFFUSION},
    ]
    said, told = asks(quick, written(tmp_path / "cases.csv", rows), tmp_path / "answers.csv")
    assert "1 answered, 0 answered before, 2 not answered" in said
    assert "File name too long" in told[0]["error"]
    assert "a folder" in told[1]["error"]
    assert told[2]["answer"]
    alone = predict(quick, "--image", "x" * 300, "--question", EFFUSION)
    assert isinstance(alone.exception, DataError)


def test_answers_are_the_users_alone_and_name_the_run_from_within_its_folder(
    quick: QuickRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "cases.csv", [{"id": "a", "image": str(quick.images[0]), "question": EFFUSION}])
    out = tmp_path / "answers.csv"
    monkeypatch.chdir(quick.folder)
    assert medfed("predict", ".", "--cache", quick.cache, "--csv", file, "--out", out).exit_code == 0
    assert table(out)["a"]["run"] == quick.folder.name
    assert out.stat().st_mode & 0o777 == 0o600
    assert "0 answered, 1 answered before" in asks(quick, file, out)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,picture\n1,a.png\n", "unknown column 'picture'"),
        ("id,question\n1,Is it?\n", "no column names a file"),
        ("id,image\n1,a.png\n1,b.png\n", "line 3: its id is there twice"),
        ("id,image\n,a.png\n", "line 2: its id is empty"),
    ],
)
def test_a_table_that_cannot_be_asked_is_refused_before_the_model_is_loaded(
    quick: QuickRun, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "cases.csv").write_text(text, encoding="utf-8")
    done = predict(quick, "--csv", tmp_path / "cases.csv", "--out", tmp_path / "answers.csv")
    assert message in str(done.exception)
    assert not (tmp_path / "answers.csv").exists()


def test_another_file_or_another_runs_answers_are_not_written_over(quick: QuickRun, tmp_path: Path) -> None:
    asked, out = cases(tmp_path, quick), tmp_path / "answers.csv"
    out.write_text("name,grade\nx,1\n", encoding="utf-8")
    assert "not a table of answers" in str(predict(quick, "--csv", asked, "--out", out).exception)
    header = "id,asked,run,task,question,answer,probability,probabilities,experts,error\n"
    out.write_text(f"{header}a,0,ffffffff-seed0,mr,q,Yes,0.5,,,\n", encoding="utf-8")
    assert "answers of another run" in str(predict(quick, "--csv", asked, "--out", out).exception)
    assert "ffffffff" in out.read_text(encoding="utf-8")
    twice = f"a,0,{quick.folder.name},mr,q,Yes,0.5,,,\n" * 2
    out.write_text(f"{header}{twice}", encoding="utf-8")
    assert "an id is there twice" in str(predict(quick, "--csv", asked, "--out", out).exception)


def test_the_help_says_what_an_argument_is() -> None:
    said = " ".join(CliRunner().invoke(app, ["predict", "--help"]).output.split())
    assert "run folder" in said


def test_an_answer_that_is_cut_is_marked_wherever_it_is_shown(
    quick: QuickRun, run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, end = Request({"image": quick.images[0]}, question=WHERE), run.injector.injected.foundation.tokenizer.ends
    for never, mark in ((True, True), (False, False)):

        def decoded(*given: object, never: bool = never) -> list[Decoded]:
            return [Decoded(run.injector.injected.foundation.tokenizer.encode(" left lung"), never)]

        monkeypatch.setattr("medfed.injection.model.decode_greedily", decoded)
        answer = ask(run, request)
        assert (answer.answer, answer.cut) == ("left lung", mark)
        assert end, "the LLM has an end"
        words = ("--image", quick.images[0], "--question", WHERE)
        assert json.loads(predict(quick, *words, "--json").stdout)["cut"] is mark
        assert ("cut: the answer was still running" in predict(quick, *words).stdout) is mark
        page = Play(run, "quick")
        shown = page._fragment("answer", answer=answer, experts="", probability=None, bars=None)
        assert ("(cut)" in shown) is mark
        table = tmp_path / f"{mark}.csv"
        (tmp_path / "cases.csv").write_text(f"id,image,question\na,{quick.images[0]},{WHERE}\n", encoding="utf-8")
        assert predict(quick, "--csv", tmp_path / "cases.csv", "--out", table).exit_code == 0
        with table.open(encoding="utf-8", newline="") as file:
            assert [row["cut"] for row in csv.DictReader(file)] == ["yes" if mark else ""]


def test_a_table_of_answers_without_the_mark_goes_on(quick: QuickRun, tmp_path: Path) -> None:
    cases, out = tmp_path / "cases.csv", tmp_path / "out.csv"
    cases.write_text(f"id,image,question\na,{quick.images[0]},{EFFUSION}\n", encoding="utf-8")
    assert predict(quick, "--csv", cases, "--out", out).exit_code == 0
    before = pl.read_csv(out, infer_schema=False)
    before.drop("cut").write_csv(out)
    assert "0 answered, 1 answered before" in predict(quick, "--csv", cases, "--out", out).stdout


def test_predictions_say_which_answers_were_cut(quick: QuickRun) -> None:
    lines = RunFolder(quick.folder).predictions("mr")
    assert all(set(line.responses["fedkim"]) == {"text", "cut", "probabilities"} for line in lines)
    assert any(line.responses["fedkim"]["cut"] for line in lines), "two steps of pre-training teach no end in 4 tokens"
    assert set(medfed_package.load_run(quick.folder, cache=quick.cache).predictions("mr")["cut"]) & {True}
    cards = [card for card in RunFolder(quick.folder).read(CardFile).cards if card.task == "mr"]
    by_example = {line.example: line.responses["fedkim"]["cut"] for line in lines}
    assert ["fedkim" in card.cut for card in cards] == [by_example[card.example] for card in cards]
    if any(card.cut for card in cards):
        assert "cut at the limit" in (quick.folder / "report.html").read_text(encoding="utf-8")
