"""Decoding: batch and cache change no token, and an answer ends where it should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from medfed.core.errors import StudyError
from medfed.core.types import Batch
from medfed.datasets.decoded import Decoded
from medfed.injection.encode import Group, by_question, encode
from medfed.injection.inject import Injector
from medfed.llm.decoding import answer_text, decode_greedily, is_finished
from medfed.llm.foundation import Foundation
from medfed.llm.huggingface import HubTokenizer
from medfed.llm.prompt import PromptBatch, build_prompt
from medfed.study.injection import Order
from medfed.tasks.base import TaskSet, closed
from medfed.tasks.question_answering import QuestionAnswering
from support.chat_toys import taught
from support.llm_toys import BOTH, CARD, CHANNELS, federated_model, foundation, language_model, settings, tokenizer

ORDERS: tuple[Order, ...] = ("modality_first", "task_first")
LENGTH = 6
ASKED = QuestionAnswering(
    name="asked",
    title="Asked",
    dataset="toy",
    modalities=("image", "sound"),
    task_description="Questions about things.",
    modality_description="Text, image and sound.",
)
QUESTIONS = ("Is it red?", "What colour is the long thing that hums in the round image?", "Shape?", "Is it round?")


def questions(absent: Sequence[tuple[str, int]] = ()) -> TaskSet:
    """Four questions of different length; ``absent`` names modality and row."""
    rng = np.random.default_rng(3)
    names = [f"q{number}" for number in range(len(QUESTIONS))]
    index = pl.DataFrame(
        {
            "example": names,
            "patient": names,
            "question": QUESTIONS,
            "answer": ["yes", "red", "a round shape", "No"],
            "closed": [True, False, False, True],
        }
    )
    samples = {name: rng.normal(size=(len(names), CHANNELS)).astype(np.float32) for name in ASKED.modalities}
    present = {name: np.ones(len(names), bool) for name in ASKED.modalities}
    for name, row in absent:
        present[name][row], samples[name][row] = False, 0.0
    return TaskSet(ASKED, Decoded("toy", CARD, index, samples, present), np.arange(len(names)))


def server(order: Order = "modality_first") -> Injector:
    """An injector whose experts are not zero."""
    made = Injector(foundation(), federated_model(), (BOTH, ASKED), settings(order=order, head_tokens=False), 0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, value in made.injected.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.3)
    return made


def decoded(made: Injector, batch: Batch) -> list[list[int]]:
    groups = by_question(encode(federated_model().eval(), [(ASKED, batch)])[0])
    with torch.no_grad(), made.injected.mixing(made.injected.alpha([ASKED]).expand(len(batch), -1)):
        answers = list(chain.from_iterable(made.injected.answer_ids(groups, LENGTH)))
    assert all(len(one.ids) == LENGTH for one in answers if one.cut)
    return [one.ids for one in answers]


def one_by_one(made: Injector, batch: Batch, order: Order) -> list[list[int]]:
    """Slow oracle: each example alone, absent modalities left out, the whole text read again for every token."""
    model, texts = made.injected, tokenizer()
    encoded = encode(federated_model().eval(), [(ASKED, batch)])[0].encoded
    answers = []
    for row, question in enumerate(batch.questions):
        seen = [
            model.projectors[n](encoded[n][row : row + 1])[0] for n in ASKED.modalities if bool(batch.present[n][row])
        ]
        asked, cue = texts.encode(f" Question: {question}"), texts.encode(" Answer:")
        start = list(texts.starts)
        after, before = (asked + cue, start) if order == "modality_first" else (cue, start + asked)
        prefix = torch.cat([model.foundation.embed(before), *seen, model.foundation.embed(after)])
        answers.append(_continue(made, prefix))
    return answers


def _continue(made: Injector, prefix: Tensor) -> list[int]:
    model, ids = made.injected, []
    for _ in range(LENGTH):
        whole = torch.cat([prefix, model.foundation.embed(ids)]).unsqueeze(0)
        with torch.no_grad(), model.mixing(model.alpha([ASKED])):
            token = int(model.llm(inputs_embeds=whole, use_cache=False).logits[0, -1].argmax())
        if token == model.foundation.tokenizer.eos:
            break
        ids.append(token)
        if is_finished(tokenizer().decode(ids)):
            break
    return ids


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("absent", [(), (("image", 1), ("sound", 3)), (("image", 0), ("sound", 0))])
def test_the_cache_and_the_batch_change_no_token(order: Order, absent: Sequence[tuple[str, int]]) -> None:
    made, batch = server(order), questions(absent).batches(9)[0]
    together = decoded(made, batch)
    assert together == [decoded(made, batch.row(row))[0] for row in range(len(batch))]
    assert together == one_by_one(made, batch, order)
    assert len({tuple(ids) for ids in together}) > 1, "the toy LLM must not answer everything alike"


def test_the_experts_decide_what_is_decoded() -> None:
    batch = questions().batches(9)[0]
    plain = Injector(foundation(), federated_model(), (BOTH, ASKED), settings(head_tokens=False), 0)
    assert decoded(server(), batch) != decoded(plain, batch)


def test_the_likelihood_of_yes_is_that_of_a_closed_task_with_the_same_question() -> None:
    made, batch = server(), questions((("sound", 2),)).batches(9)[0]
    found = made.score(ASKED, batch)
    for row, question in enumerate(QUESTIONS):
        twin = BOTH.model_copy(
            update={
                "question": question,
                "task_description": ASKED.task_description,
                "modality_description": ASKED.modality_description,
            }
        )
        alone = made.score(twin, replace(batch.row(row), questions=()))
        torch.testing.assert_close(found[row], alone[0], atol=1e-5, rtol=0)


def test_answers_are_texts_in_the_order_of_the_examples() -> None:
    made, batch = server(), questions().batches(9)[0]
    texts = [answer_text(ids, tokenizer()) for ids in decoded(made, batch)]
    assert [said.text for said in made.answer(ASKED, batch, LENGTH)] == texts


def test_answers_behind_a_shared_question_are_those_of_one_example_at_a_time() -> None:
    made, batch = server("task_first"), questions().batches(9)[0]
    for given in (batch, replace(batch, questions=(batch.questions[1],) * 4)):
        made.injected._fixed_cost = 1e9
        alone = [made.answer(ASKED, given.row(row), LENGTH)[0] for row in range(4)]
        made.injected._fixed_cost = 0.0  # nothing is cheaper than another forward
        assert made.answer(ASKED, given, LENGTH) == alone


class Script(nn.Module):
    """An LLM that says fixed tokens, whatever it reads, and counts its forwards."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.rows, self.step = rows, 0

    def forward(self, inputs_embeds: Tensor, **_: object) -> SimpleNamespace:
        logits = torch.zeros(len(self.rows), 1, 340)
        for row, tokens in enumerate(self.rows):
            logits[row, 0, tokens[self.step]] = 1.0
        self.step += 1
        return SimpleNamespace(logits=logits, past_key_values=self.step)


CUT: list[bool] = []
"""Which answers of the last :func:`said` were cut."""


def said(*rows: Sequence[int], limit: int = 4, base: Foundation | None = None) -> tuple[list[list[int]], int]:
    size, script = len(rows), Script(rows)
    ones = torch.ones(size, 2, 2, dtype=torch.bool)
    prompts = PromptBatch(torch.zeros(size, 2, 32), ones, torch.zeros(size, 2, dtype=torch.long), 1)
    answers = decode_greedily(script, base or foundation(), prompts, limit)
    CUT[:] = [one.cut for one in answers]
    return [one.ids for one in answers], script.step


def test_an_answer_ends_at_the_end_of_text_and_at_its_limit() -> None:
    end, yes, no = tokenizer().eos, tokenizer().encode(" Yes")[0], tokenizer().encode(" No")[0]
    assert end is not None
    assert said([yes, end, no, no], [no, yes, no, yes]) == ([[yes], [no, yes, no, yes]], 4)
    assert CUT == [False, True], "one ended by itself, the other was still running"
    assert said([yes, end], [end, yes]) == ([[yes], []], 2), "nothing is computed once all have ended"
    assert CUT == [False, False]
    assert said([yes, no] * 9, limit=3) == ([[yes, no, yes]], 3)
    assert said([yes, no, end], limit=3) == ([[yes, no]], 3)
    assert CUT == [False], "an end at the last place is an end"


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma"])
def test_in_chat_form_an_answer_ends_at_end_tokens_alone(family: str) -> None:
    texts = HubTokenizer(taught(family), ends=[7])
    base = Foundation("toy", language_model(), texts, {})
    lines = texts.encode("Yes\nred red Question: round")
    turn = texts.turns().end[0]
    for end in (turn, 7, texts.eos):
        ids, steps = said([*lines, end, *lines], limit=40, base=base)
        assert ids == [lines]
        assert steps == len(lines) + 1
        assert CUT == [False]
    assert answer_text(lines, texts) == "Yes\nred red Question: round"
    said([*lines, end], limit=len(lines), base=base)
    assert CUT == [True]


def test_an_answer_ends_where_a_next_question_or_line_begins() -> None:
    texts = tokenizer()
    rambling = texts.encode(" Yes Question: Is it red? Answer: No")
    ids, steps = said(rambling, limit=len(rambling))
    assert answer_text(ids[0], texts) == "Yes"
    assert steps < len(rambling)
    assert answer_text(texts.encode("\n round\nred"), texts) == "round", "a leading line break is no end"
    assert answer_text([], texts) == ""
    assert answer_text(texts.encode(" Question: red"), texts) == ""


def test_an_answer_ends_before_a_repeated_word_but_not_within_one() -> None:
    texts = tokenizer()
    assert answer_text(texts.encode(" Yes yes Yes"), texts) == "Yes"
    assert answer_text(texts.encode(" red sound red sound"), texts) == "red sound red sound", "only the word just said"
    assert is_finished(" Yes Yes Yes")
    assert not is_finished(" no no"), "the second may become 'not'"
    assert answer_text(texts.encode(" no not"), texts) == "no not"


@pytest.mark.parametrize("order", ORDERS)
def test_a_question_stands_in_the_prompt_as_a_closed_tasks_does(order: Order) -> None:
    batch = questions().batches(9)[0]
    group = Group(ASKED, {}, batch)
    for part, question in zip(by_question(group), QUESTIONS, strict=True):
        same = BOTH.model_copy(update={"question": question})
        assert build_prompt(part.task, tokenizer(), order) == build_prompt(same, tokenizer(), order)


def test_targets_are_the_yes_no_answers_and_nothing_is_rewritten() -> None:
    held = questions()
    data, truths = held.data, ASKED.truths(held)
    assert ASKED.targets(data).tolist() == [truth["target"] for truth in truths] == [1, -1, -1, 0]
    assert [truth["reference"] for truth in truths] == ["yes", "red", "a round shape", "No"]
    assert [truth["closed"] for truth in truths] == [True, False, False, True]
    gaps = Decoded(
        "toy", CARD, data.index.with_columns(answer=pl.Series(["", "red", None, " "])), data.samples, data.present
    )
    assert ASKED.usable(gaps).tolist() == [False, True, False, False]


def test_clients_cannot_train_an_open_question() -> None:
    with pytest.raises(StudyError, match="unseen"):
        closed(ASKED)
    assert closed(BOTH) is BOTH
