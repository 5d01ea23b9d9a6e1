"""Foundations: the tiny one is a function of settings and text, its cache is safe, only plain weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medfed.core.errors import DataError, MedfedError, RunError, StudyError
from medfed.llm.foundation import Foundation, load_foundation
from medfed.llm.tiny import prepare as tiny
from medfed.llm.tiny.cases import NO, YES, compose_closed, domains, facts
from medfed.llm.tiny.checks import greedy, padded, render, stem
from medfed.llm.tiny.open_cases import NONE, compose_open, open_corpus
from medfed.llm.tiny.prepare import documents
from medfed.llm.tiny.pretrain import pretrain, training_cases, unseen_open_cases
from medfed.study.foundation import HuggingFaceSettings, TinySettings
from support.llm_toys import foundation

SMALL = TinySettings(vocab_size=400, width=16, num_layers=1, num_heads=2, num_steps=8, batch_size=8, lr=1e-2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def small(cache: Path) -> Foundation:
    return load_foundation(SMALL, cache=cache)


def test_the_record_tells_what_pretraining_did(small: Foundation) -> None:
    info = small.info
    print(f"perplexity {info['perplexity_before']:.0f} → {info['perplexity_after']:.0f}")
    assert info["perplexity_after"] < info["perplexity_before"]
    for group in ("taught_findings", "held_out_findings"):
        checked = info["closed_questions"][group]
        assert 0 <= checked["accuracy"] <= 1
        assert 0.5 <= checked["majority"] <= 1
        assert checked["n"] > 0
    opened = info["open_questions"]
    print(f"open questions: token F1 {opened['token_f1']:.2f}, best constant {opened['constant_token_f1']:.2f}")
    for score in ("exact_match", "token_f1", "constant_exact_match", "constant_token_f1", "stopped"):
        assert 0 <= opened[score] <= 1
    assert opened["exact_match"] <= opened["token_f1"]
    assert 0 < opened["constant_exact_match"] <= opened["constant_token_f1"]
    assert set(opened["by_line"]) == {"full", "short", "empty"}


def test_pretraining_is_a_function_of_settings_and_text(small: Foundation, tmp_path: Path) -> None:
    torch.manual_seed(99)
    threads = torch.get_num_threads()
    again = load_foundation(SMALL, cache=tmp_path)
    assert torch.get_num_threads() == threads
    assert (again.fingerprint(), again.name) == (small.fingerprint(), small.name)
    other = load_foundation(SMALL.model_copy(update={"seed": 1}), cache=tmp_path)
    assert other.fingerprint() != small.fingerprint()
    assert other.name != small.name


def test_the_cache_is_used(small: Foundation, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "pretrain", lambda *_: pytest.fail("trained again"))
    assert load_foundation(SMALL, cache=cache).fingerprint() == small.fingerprint()


def test_a_killed_pretraining_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "sha256_of", killed)
    with pytest.raises(KeyboardInterrupt):
        load_foundation(SMALL, cache=tmp_path)
    assert list((tmp_path / "tiny").iterdir()) == []


def test_damaged_weights_are_noticed(small: Foundation, cache: Path, tmp_path: Path) -> None:
    folder = cache / "tiny" / small.name.removeprefix("tiny-")
    copy = tmp_path / "tiny" / folder.name
    copy.mkdir(parents=True)
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    weights = copy / "model.safetensors"
    payload = bytearray(weights.read_bytes())
    payload[-1] ^= 1
    weights.write_bytes(bytes(payload))
    with pytest.raises(RunError, match="damaged"):
        load_foundation(SMALL, cache=tmp_path)


def test_a_tiny_folder_is_a_hugging_face_model(small: Foundation, cache: Path) -> None:
    folder = cache / "tiny" / small.name.removeprefix("tiny-")
    settings = HuggingFaceSettings(dtype="float32")
    loaded = load_foundation(settings, cache=cache, path=folder)
    assert loaded.fingerprint() == small.fingerprint()
    ids = loaded.tokenizer.encode(" Question: Is there pneumonia in this image? Answer: Yes")
    assert loaded.tokenizer.decode(ids) == " Question: Is there pneumonia in this image? Answer: Yes"
    assert loaded.embed(ids).shape == (len(ids), SMALL.width)
    assert not any(value.requires_grad for value in loaded.model.parameters())


def test_pickled_weights_are_refused(small: Foundation, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(StudyError, match="no weights"):
        load_foundation(HuggingFaceSettings(), cache=cache, path=tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(StudyError, match="pickled"):
        load_foundation(HuggingFaceSettings(), cache=cache, path=tmp_path)


def test_a_model_with_code_of_its_own_is_refused(cache: Path, tmp_path: Path) -> None:
    config = {"model_type": "homemade", "auto_map": {"AutoModelForCausalLM": "own.Model", "AutoConfig": "own.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "own.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(StudyError, match="cannot load"):
        load_foundation(HuggingFaceSettings(), cache=cache, path=tmp_path)


@pytest.mark.parametrize(
    ("settings", "flags", "message"),
    [
        (HuggingFaceSettings(), {}, "no LLM is named"),
        (HuggingFaceSettings(), {"path": Path("absent")}, "config.json"),
        (HuggingFaceSettings(model="nobody/nothing"), {}, "cannot load"),
        (HuggingFaceSettings(), {"corpus": Path("texts")}, "--corpus"),
        (SMALL, {"path": Path("folder")}, "--foundation"),
        (SMALL, {"corpus": Path("absent")}, "not a folder"),
    ],
)
def test_flags_that_do_not_fit_are_named(
    settings: TinySettings | HuggingFaceSettings, flags: dict[str, Path], message: str, tmp_path: Path
) -> None:
    with pytest.raises(MedfedError, match=message):
        load_foundation(settings, cache=tmp_path, **flags)


def test_a_corpus_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("First\nparagraph.\n\nSecond.", encoding="utf-8")
    (tmp_path / "b.xml").write_text(
        "<D><QAPair><Question>What is\n it?</Question><Answer>A thing &amp; more.</Answer></QAPair></D>",
        encoding="utf-8",
    )
    (tmp_path / "c.csv").write_text("ignored", encoding="utf-8")
    expected = ["First paragraph.", "Second.", "Question: What is it? Answer: A thing & more."]
    assert documents(tmp_path) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("a.txt", "caf\xe9".encode("latin-1"), "UTF-8"), ("a.xml", b"<D>", "not XML"), ("a.csv", b"x", "no text")],
)
def test_a_corpus_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        documents(tmp_path)


def test_real_questions_and_answers_are_read(real_data: Path) -> None:
    texts = documents(real_data / "medquad" / "7_SeniorHealth_QA")
    assert len(texts) > 20
    assert all(text.startswith("Question: ") and " Answer: " in text for text in texts)


def test_findings_refer_to_findings_that_exist() -> None:
    for name, domain in domains().items():
        known = {finding.name for finding in domain.findings}
        named = {other for finding in domain.findings for other in (*finding.implies, *finding.often)}
        assert named <= known, f"{name}: {sorted(named - known)}"


def test_held_out_findings_appear_in_no_taught_text() -> None:
    rng = np.random.default_rng(0)
    taught = [*documents(None), *facts(), *(" ".join(compose_closed(rng)[:2]) for _ in range(2000))]
    taught += [render(compose_open(rng)) for _ in range(2000)]
    text = "\n".join(taught).lower()
    for domain in domains().values():
        for finding in domain.pool(held_out=True):
            for words in (finding.name, *finding.signs):
                assert words.lower() not in text, words


def test_answers_follow_from_what_was_told() -> None:
    rng = np.random.default_rng(1)
    cases = [compose_closed(rng, vague=False) for _ in range(2000)]
    assert {case.kind for case in cases} == {"named", "sign", "implied", "negated", "absent", "any"}
    for case in cases:
        if case.kind != "any":
            assert case.answer == (YES if case.kind in ("named", "sign", "implied") else NO)
        if case.kind == "negated":
            assert " no " in f" {case.context}" or ": no " in case.context
    share = sum(case.answer == YES for case in cases) / len(cases)
    assert 0.4 < share < 0.6, "neither answer may win by default"


def test_open_answers_follow_from_what_was_told() -> None:
    rng = np.random.default_rng(2)
    cases = [compose_open(rng) for _ in range(3000)]
    assert {case.kind for case in cases} == set(open_corpus().topics), "every topic is asked"
    for case in cases:
        assert case.answer == case.answer.lower()
        assert "{" not in case.question
        assert (case.detail == "empty") == (case.context == "")
        if case.detail == "full" and case.kind in (
            "finding",
            "place",
            "size",
            "noise",
            "lead",
            "rhythm",
            "axis",
            "symptom",
        ):
            told = case.context.split(": ", 1)[-1]
            assert case.answer in told or (case.answer == NONE and told.startswith("no ")), case
        if case.detail == "full" and case.kind == "side":
            assert case.answer in case.context.split(), case


def test_the_open_check_asks_what_was_never_taught() -> None:
    settings = SMALL.model_copy(update={"num_steps": 100})
    _, taught = training_cases(settings)
    checked = unseen_open_cases(taught, settings.seed)
    assert not {case.question for case in taught} & {case.question for case in checked}
    assert not {case.context for case in taught if case.detail == "full"} & {case.context for case in checked}
    assert len({case.detail for case in checked}) == 3


def test_shares_say_how_many_cases_are_open() -> None:
    settings = SMALL.model_copy(update={"case_share": 0.5, "open_share": 0.25, "num_steps": 10})
    closed, opened = training_cases(settings)
    assert (len(closed), len(opened)) == (30, 10)
    assert training_cases(settings.model_copy(update={"open_share": 0.0}))[1] == []


def test_answers_are_learned_and_end_by_themselves() -> None:
    """Most answers stop by themselves, none is a closed one; greedy batches equal single questions."""
    settings = TinySettings(
        vocab_size=400, width=32, num_layers=1, num_heads=2, num_steps=60, batch_size=8, lr=1e-2, case_share=1.0,
        open_share=1.0,
    )  # fmt: skip
    trained = pretrain(settings, documents(None))
    cases = unseen_open_cases([], seed=3)[:20]
    answers, stopped = greedy(trained.model, trained.tokenizer, cases)
    assert trained.info["open_questions"]["stopped"] > 0.5
    assert sum(stopped) > len(stopped) / 2
    assert "Yes" not in answers
    for case, answer in zip(cases, answers, strict=True):
        assert greedy(trained.model, trained.tokenizer, [case])[0] == [answer]
        ids = trained.tokenizer.encode(stem(case)).ids
        logits = trained.model(input_ids=padded([[1, *ids]])).logits[0, -1]
        first = trained.tokenizer.decode([int(logits.argmax())]).strip()
        assert answer.startswith(first)


def test_the_weights_on_disk_are_float32_and_tied(small: Foundation, cache: Path) -> None:
    weights = load_file(cache / "tiny" / small.name.removeprefix("tiny-") / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert "lm_head.weight" not in weights


def test_the_output_layer_sees_contiguous_memory_in_every_copy() -> None:
    base = foundation()
    seen: list[bool] = []
    for llm in (base.model, base.shared_copy()):
        llm.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
        llm(input_ids=torch.arange(12).view(3, 4), logits_to_keep=1)
    assert seen == [True, True]
