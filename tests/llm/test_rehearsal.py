"""Rehearsal: both losses are those of plain transformers, each lowers the drift, and a resumed run is exact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from medfed.core.errors import DataError
from medfed.injection.encode import encode
from medfed.injection.inject import Injector
from medfed.injection.rehearsal import QUESTIONS, Rehearsal, Words
from support.llm_toys import BOTH, IMAGE, examples, federated_model, foundation, injector, public, settings

HARD = {"lr": 1e-2, "num_experts": 3}
"""An injection that makes the LLM drift."""


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    words = [f"shape {n} is round and red, colour {n * n} is a sound task image" for n in range(12)]
    (folder / "all.txt").write_text("\n\n".join(words), encoding="utf-8")
    return folder


def rehearsing(texts: Path, *, weight: float = 0.0, kl: float = 0.0, **more: object) -> dict[str, object]:
    small = {"weight": weight, "texts": str(texts), "num_texts": 4, "max_length": 12}
    return {**HARD, "rehearsal": small, "kl_weight": kl, **more}


def trained(rounds: int = 2, **changes: object) -> Injector:
    server = injector(**changes)
    for number in range(1, rounds + 1):
        list(server.inject(public(), number))
    return server


def drift(server: Injector, texts: Path) -> Mapping[str, float]:
    """NLL and KL of all texts, without dropout."""
    judge = Rehearsal(server.injected.eval(), settings(**rehearsing(texts, weight=1.0, kl=1.0)), 0)
    with torch.no_grad():
        return {name: value.item() for name, value in judge.losses(judge.pieces).items()}


@pytest.mark.parametrize("num_experts", [1, 3])
def test_the_losses_are_those_of_plain_forwards(num_experts: int, texts: Path) -> None:
    server = trained(1, lr=1e-2, num_experts=num_experts)
    injected = server.injected.eval()
    judge = Rehearsal(injected, settings(**rehearsing(texts, weight=1.0, kl=1.0)), 0)
    pieces = [judge.pieces[0], judge.pieces[3][:5], judge.pieces[5][:2]]
    nll: list[Tensor] = []
    kl: list[Tensor] = []
    for piece in pieces:
        ids = torch.tensor([piece])
        with torch.no_grad(), injected.mixing(torch.full((1, num_experts), 1 / num_experts)):
            adapted = injected.llm(input_ids=ids).logits[0, :-1].log_softmax(-1)
            frozen = injected.foundation.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        nll.append(F.nll_loss(adapted, ids[0, 1:], reduction="none"))
        kl.append(F.kl_div(adapted, frozen, log_target=True, reduction="none").sum(-1))
    losses = judge.losses(pieces)
    assert losses["nll"].item() == pytest.approx(torch.cat(nll).mean().item(), rel=1e-5)
    assert losses["kl"].item() == pytest.approx(torch.cat(kl).mean().item(), rel=1e-4)
    assert losses["kl"].item() > 1e-4


def test_before_training_the_adapted_llm_is_the_frozen_one(texts: Path) -> None:
    assert drift(injector(num_experts=3), texts)["kl"] == 0


def test_each_lowers_the_drift(texts: Path) -> None:
    alone = drift(trained(**HARD), texts)
    rehearsed = drift(trained(**rehearsing(texts, weight=1.0)), texts)
    held = drift(trained(**rehearsing(texts, kl=3.0)), texts)
    before = drift(injector(**HARD), texts)
    assert alone["nll"] > before["nll"], "without either, the LLM forgets"
    assert rehearsed["nll"] < alone["nll"] - 0.05
    assert held["kl"] < 0.5 * alone["kl"]


def test_the_frozen_llm_stays_frozen_and_the_router_learns_nothing_of_texts(texts: Path) -> None:
    base = foundation()
    before = base.fingerprint()
    server = Injector(base, federated_model(), (IMAGE, BOTH), settings(**rehearsing(texts, weight=1.0, kl=1.0)), 0)
    server.injected.train()
    assert set(server._rehearsal.backward(1, 0, 0)) == {"nll", "kl"}
    grads = {name for name, value in server.injected.named_parameters() if value.grad is not None}
    assert grads
    assert all("lora_" in name for name in grads)
    list(server.inject(public(), 1))
    assert base.fingerprint() == before


def test_without_weights_nothing_is_read_and_steps_say_nothing_of_it() -> None:
    server = injector(rehearsal={"texts": "/nowhere"})
    server.check_texts()
    steps = list(server.inject(public(), 1))
    assert not any("rehearsal" in step.model_dump(exclude_unset=True) for step in steps)
    plain = list(injector().inject(public(), 1))
    assert steps == plain


def test_steps_record_what_counts(texts: Path) -> None:
    (first, *_) = injector(**rehearsing(texts, weight=1.0)).inject(public(), 1)
    assert set(first.rehearsal) == {"nll"}
    (first, *_) = injector(**rehearsing(texts, kl=1.0)).inject(public(), 1)
    assert set(first.rehearsal) == {"kl"}
    steps = list(injector(**rehearsing(texts, kl=1.0, align_rounds=1)).inject(public(), 1))
    assert not any(step.rehearsal for step in steps), "nothing is rehearsed while the projectors alone learn"


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(texts: Path) -> None:
    changes = rehearsing(texts, weight=0.5, kl=0.5)
    changes["rehearsal"] = {**changes["rehearsal"], "question_weight": 0.5}  # type: ignore[dict-item]
    whole, first = trained(2, **changes), trained(1, **changes)
    model = federated_model()
    model.load_state_dict(first._model.state_dict())
    resumed = Injector(foundation(), model, (IMAGE, BOTH), settings(**changes), 0)
    resumed.load_state(first.state())
    torch.manual_seed(3)
    list(resumed.inject(public(), 2))
    expected, actual = whole.state(), resumed.state()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


ASKING = {**HARD, "rehearsal": {"question_weight": 1.0, "num_questions": 3}}


def unlikelihood(server: Injector) -> float:
    """Per token, of the frozen LLM's answers to open questions about examples."""
    groups = encode(server._model.eval(), [(IMAGE, examples(IMAGE, 16).batches(16)[0])])
    judge = Words(server.injected.eval(), settings(rehearsal={"question_weight": 1.0, "num_questions": 16}), 0)
    inquiries = [server._with_heads(group) for group in judge.drawn(groups, 1)]
    value = judge.backward(inquiries)
    server._optimizer.zero_grad()
    return value


def test_answers_in_words_stay_likely_where_they_are_trained_and_not_elsewhere() -> None:
    before, alone, kept = unlikelihood(injector(**HARD)), unlikelihood(trained(**HARD)), unlikelihood(trained(**ASKING))
    print(f"{before:.2f} nats a token before, {alone:.2f} after closed questions alone, {kept:.2f} with open ones")
    assert alone > before, "closed questions alone drive words out"
    assert kept < before


def test_open_questions_are_drawn_from_the_key_and_steps_record_them() -> None:
    server = injector(**ASKING)
    assert server._words
    groups = encode(server._model, [(IMAGE, examples(IMAGE, 16).batches(16)[0])])
    one, again, other = (server._words.drawn(groups, *key) for key in ((1, 0, 8), (1, 0, 8), (1, 0, 16)))
    assert [group.task.question for group in one] == [group.task.question for group in again]
    assert [group.task.question for group in one] != [group.task.question for group in other]
    assert {group.task.question for group in one} <= set(QUESTIONS)
    assert all(group.task.answers == (server._words.answers[group.task.question],) for group in one)
    (first, *_) = server.inject(public(), 1)
    assert set(first.rehearsal) == {"words"}


def test_pieces_come_from_the_key(texts: Path) -> None:
    judge = injector(**rehearsing(texts, weight=1.0))._rehearsal
    assert judge.drawn(1, 0, 8) == judge.drawn(1, 0, 8)
    assert judge.drawn(1, 0, 8) != judge.drawn(1, 0, 16)
    assert all(2 <= len(piece) <= 13 for piece in judge.pieces)
    assert all(piece[0] == judge._injected.foundation.tokenizer.starts[0] for piece in judge.pieces)


def test_the_packages_text_is_rehearsed_where_no_folder_is_given() -> None:
    server = injector(rehearsal={"weight": 1.0})
    server.check_texts()
    assert len(server._rehearsal.pieces) > 50


def test_an_absent_folder_is_said_before_anything_trains(tmp_path: Path) -> None:
    server = injector(rehearsal={"weight": 1.0, "texts": str(tmp_path / "none")})
    with pytest.raises(DataError, match="not a folder"):
        server.check_texts()


@pytest.mark.parametrize("change", [{"rehearsal": {"weight": 1.0}}, {"kl_weight": 0.1}])
def test_without_experts_nothing_can_be_rehearsed(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="need experts"):
        settings(num_experts=0, **change)
