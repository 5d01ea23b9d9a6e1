"""Retention: the same questions before and after, an even mixture, the forms of chat and training, paired scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medfed.core.errors import DataError, StudyError
from medfed.datasets.examinations import EXAMINATIONS, Question
from medfed.injection.inject import Injector
from medfed.injection.retention import AFTER, BEFORE, Retention, TrainedForm, forms_of, model_name, score_retention
from medfed.llm.chat import Form
from medfed.llm.foundation import Foundation
from medfed.llm.huggingface import HubTokenizer
from medfed.llm.knowledge import Chosen, answers_of, choose
from medfed.llm.language_model import LanguageModel
from medfed.llm.prompt import build_prompt
from medfed.runs.context import RunPaths, settled
from medfed.study.evaluation import EvaluationSettings, RetentionSettings
from medfed.study.study import study_of
from support.llm_toys import BOTH, IMAGE, fast_tokenizer, federated_model, injector, language_model, public, settings
from support.studies import QUICK

CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CLOSED = [Question(str(n), f"Is shape {n} round?", ("yes", "no"), n % 2) for n in range(12)]
TEXTS = [Question(str(n), f"Is it {n}?", (f"shape {n} is red and round",), 0) for n in range(12)]
CHOSEN = [Chosen(EXAMINATIONS["pubmedqa"], CLOSED), Chosen(EXAMINATIONS["medquad"], TEXTS)]


def retention(server: Injector, **changes: object) -> Retention:
    return Retention(server.injected, CHOSEN, RetentionSettings(**changes))


def taught_tokenizer() -> HubTokenizer:
    made = fast_tokenizer(adds_start=False)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHATML
    return HubTokenizer(made, (made.convert_tokens_to_ids("<|im_end|>"),))


@pytest.mark.parametrize("num_experts", [0, 1, 3])
def test_before_training_the_injected_llm_answers_as_the_frozen_one_to_the_bit(num_experts: int) -> None:
    looks = retention(injector(num_experts=num_experts))
    first, second = looks.look(0), looks.look(1)
    assert [line.responses for line in first] == [line.responses for line in second]
    assert [(line.examination, line.form) for line in first] == [
        (name, form) for form in ("chat", "trained") for name in ("pubmedqa", "medquad")
    ]
    assert {line.round for line in second} == {1}


@pytest.mark.parametrize("num_experts", [1, 3])
def test_after_training_it_answers_with_its_experts_mixed_evenly(num_experts: int) -> None:
    server = injector(num_experts=num_experts, lr=1e-2)
    looks = retention(server)
    list(server.inject(public(), 1))
    before, after = looks.look(0), looks.look(1)
    assert all(a.responses != b.responses for a, b in zip(before, after, strict=True))
    injected = server.injected.eval()
    alone = LanguageModel(injected.foundation, llm=injected.llm)
    even = torch.full((1, num_experts), 1 / num_experts)
    with torch.no_grad(), injected.mixing(even):
        expected = answers_of(alone, EXAMINATIONS["pubmedqa"], CLOSED)
    assert list(after[0].responses) == expected


def test_a_look_changes_neither_weights_nor_chance_nor_the_mode() -> None:
    server = injector()
    list(server.inject(public(), 1))
    before, chance = {name: value.clone() for name, value in server.state().items()}, torch.get_rng_state()
    server.injected.train()
    first = retention(server).look(1)
    assert server.injected.training
    assert all(torch.equal(value, before[name]) for name, value in server.state().items())
    assert torch.equal(chance, torch.get_rng_state())
    assert [line.responses for line in retention(server).look(1)] == [line.responses for line in first]


@pytest.mark.parametrize("order", ["modality_first", "task_first"])
def test_the_trained_form_is_the_trained_prompt_without_modality_tokens(order: str) -> None:
    tokenizer = injector().injected.foundation.tokenizer
    prompt = build_prompt(IMAGE, tokenizer, order)
    form = TrainedForm(order=order)
    assert form.prompt(IMAGE.question, tokenizer) == prompt.before + prompt.after
    assert tuple(form.answer(answer, tokenizer) for answer in IMAGE.answers) == prompt.answers


def test_an_llm_with_a_template_has_one_form_for_both() -> None:
    tokenizer = taught_tokenizer()
    assert forms_of(tokenizer, "modality_first") == {"chat": Form()}
    assert Form().prompt("Is it round?", tokenizer) == TrainedForm().prompt("Is it round?", tokenizer)
    base = Foundation("taught", language_model(), tokenizer, {})
    server = Injector(base, federated_model(), (IMAGE, BOTH), settings(), 0)
    assert {line.form for line in retention(server).look(1)} == {"chat"}


@pytest.mark.parametrize(("every", "rounds"), [(0, [0, 5]), (2, [0, 2, 4, 5]), (1, [0, 1, 2, 3, 4, 5])])
def test_the_first_and_the_last_round_are_always_due(every: int, rounds: list[int]) -> None:
    looks = retention(injector(), every=every)
    assert [number for number in range(6) if looks.due(number, 5)] == rounds
    assert not Retention(injector().injected, [], RetentionSettings(every=1)).due(0, 5)


def test_looks_are_compared_question_by_question_with_the_first() -> None:
    server = injector(lr=1e-2)
    looks, lines = retention(server), []
    lines += looks.look(0)
    for number in (1, 2):
        list(server.inject(public(), number))
        lines += looks.look(number)
    tasks = looks.tasks(lines)
    assert [name for name, _, _ in tasks] == [
        f"knowledge-{name}-{form}" for form in ("chat", "trained") for name in ("pubmedqa", "medquad")
    ]
    scores = score_retention(tasks, 0, EvaluationSettings(num_resamples=50))
    assert {facts.role for facts in scores.tasks.values()} == {"knowledge"}
    mine = [row for row in scores.rows if row.task == "knowledge-medquad-trained"]
    assert [row.model for row in mine] == [BEFORE, "after-round-1", AFTER]
    assert mine[0].value == pytest.approx(np.mean(lines[3].responses))
    gaps = [gap for gap in scores.differences if gap.task == mine[0].task and gap.baseline == BEFORE]
    assert [gap.model for gap in gaps] == ["after-round-1", AFTER]
    assert gaps[1].value == pytest.approx(mine[2].value - mine[0].value)
    assert gaps[1].ci_low <= gaps[1].value <= gaps[1].ci_high


def test_a_look_is_named_by_its_place() -> None:
    assert [model_name(number, 3) for number in range(4)] == ["before", "after-round-1", "after-round-2", "after"]


def test_the_frozen_llm_is_looked_up_in_the_cache(tmp_path: Path) -> None:
    base = Foundation("toy", language_model(), injector().injected.foundation.tokenizer, {"sha256": "1" * 64})
    server = Injector(base, federated_model(), (IMAGE, BOTH), settings(), 0)
    kept = Retention(server.injected, CHOSEN, RetentionSettings(), tmp_path)
    assert kept.look(0) == retention(server).look(0)
    before = (tmp_path / "likelihoods.sqlite").read_bytes()
    list(server.inject(public(), 1))
    assert kept.look(1) == retention(server).look(1)
    assert (tmp_path / "likelihoods.sqlite").read_bytes() == before, "an LLM that is trained is not kept"


def test_sets_are_looked_for_below_all_roots(tmp_path: Path) -> None:
    place = tmp_path / "two" / "medmcqa" / "data" / "dev.json"
    place.parent.mkdir(parents=True)
    (tmp_path / "one").mkdir()
    row = '{"id": "%d", "question": "What?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 2}\n'
    place.write_text("".join(row % number for number in range(5)), encoding="utf-8")
    roots = [tmp_path / "one", tmp_path / "two"]
    assert [(one.examination.name, len(one.questions)) for one in choose([], roots, 3)] == [
        ("sample", 3),
        ("medmcqa", 3),
    ]
    with pytest.raises(StudyError, match="MedQA is not here"):
        choose(["sample", "medqa"], roots, 3)
    with pytest.raises(StudyError, match="unknown examination"):
        choose(["medqs"], roots, 3)
    with pytest.raises(StudyError, match="no such folder"):
        choose(["medqa"], [tmp_path / "three"], 3)
    place.write_text('{"cop": 9}\n', encoding="utf-8")
    with pytest.raises(DataError, match="opa to opd"):
        choose(["medmcqa"], roots, 3)


def test_found_stands_for_the_sets_below_the_roots_and_for_the_sample_without_any(tmp_path: Path) -> None:
    rows = {"1": {"QUESTION": "Does it help?", "LONG_ANSWER": "It did not.", "final_decision": "no"}}
    (tmp_path / "here/data").mkdir(parents=True)
    (tmp_path / "here/data/ori_pqal.json").write_text(json.dumps(rows), encoding="utf-8")

    def names(data_root: Path | None, roots: list[str]) -> tuple[str, ...]:
        wanted = {**QUICK, "evaluation": {"retention": {"sets": ["found"], "roots": roots}}}
        study, _ = settled(study_of(wanted, "quick"), RunPaths(tmp_path, tmp_path, data_root))
        return study.evaluation.retention.sets

    assert names(None, []) == ("sample",)
    assert sorted(names(tmp_path / "here", [])) == sorted(names(None, [str(tmp_path)])) == ["pubmedqa", "sample"]


def test_a_question_is_the_same_at_every_look() -> None:
    looks = retention(injector())
    changed = [line.model_copy(update={"round": 2}) for line in looks.look(1)]
    (_, _, lines), *_ = looks.tasks([*looks.look(0), *changed])
    assert len({line.example for line in lines}) == len(CLOSED)
    assert all(line.responses[BEFORE] == line.responses[AFTER] for line in lines)


def test_a_lead_stands_before_the_answer_in_both_forms() -> None:
    for tokenizer in (injector().injected.foundation.tokenizer, taught_tokenizer()):
        for form in (Form, TrainedForm):
            plain, led = form(), form(lead="The right letter is")
            begin, whole = plain.prompt("Is it round?", tokenizer), led.prompt("Is it round?", tokenizer)
            assert whole[: len(begin)] == begin
            assert tokenizer.decode(whole[len(begin) :]).strip() == "The right letter is"
            assert tokenizer.decode(led.answer("B", tokenizer)) == " B"
