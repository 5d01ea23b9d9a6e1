"""Frozen texts are made once, and anew for another table; a shared question is read once, and no number changes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from medfed.core.torch_rng import torch_seeded
from medfed.injection.encode import encode
from medfed.injection.inject import Injector
from medfed.injection.model import InjectedModel, Texts
from medfed.llm.forward import PrefixCache, Windows
from medfed.llm.foundation import Foundation
from medfed.llm.prompt import Turns
from medfed.tasks.classification import Classification
from support.llm_toys import BOTH, IMAGE, WORDY, examples, federated_model, foundation, public, settings, tokenizer

LONG = WORDY.model_copy(update={"question": "Does the long sound of this thing fit its colour? " * 3})


@dataclass
class Counting:
    """The toy tokenizer, with the texts it was given."""

    starts: tuple[int, ...] = tokenizer().starts
    eos: int | None = tokenizer().eos
    ends: frozenset[int] = tokenizer().ends
    has_template: bool = False
    texts: list[str] = field(default_factory=list)

    def encode(self, text: str) -> list[int]:
        self.texts.append(text)
        return tokenizer().encode(text)

    def decode(self, ids: list[int]) -> str:
        return tokenizer().decode(ids)

    def turns(self, system: str | None = None) -> Turns:
        raise AssertionError("it has no chat template")


def test_nothing_is_tokenised_twice_in_training_and_scoring() -> None:
    words, base = Counting(), foundation()
    made = Injector(
        Foundation("toy", base.model, words, {}), federated_model(), (IMAGE, BOTH), settings(teacher_weight=0), 0
    )
    list(made.inject(public(), 1))
    made.score_set(examples(BOTH, 9), 4)
    known = len(words.texts)
    list(made.inject(public(), 2))
    made.score_set(examples(BOTH, 9), 4)
    assert len(words.texts) == known
    made.score_set(examples(WORDY, 9), 4)
    assert len(words.texts) > known


def test_a_table_that_was_written_to_is_read_again() -> None:
    base = foundation()
    texts, ids = Texts(base, "modality_first"), tuple(tokenizer().encode("Is it red?"))
    with torch.inference_mode():
        first = texts.embedded(ids)
    assert texts.embedded(ids) is first
    assert not first.is_inference(), "training reads it too"
    told = texts.described(["Image only", "Colours and sounds."])
    assert told.mask.sum(1).tolist() == [
        len(tokenizer().encode(text)) for text in ("Image only", "Colours and sounds.")
    ]
    with torch.no_grad():
        base.table.mul_(2)
    torch.testing.assert_close(texts.embedded(ids), 2 * first)
    torch.testing.assert_close(texts.described(["Image only", "Colours and sounds."]).embeddings, 2 * told.embeddings)


def asked(task: Classification, order: str, *, share: bool) -> tuple[Tensor, list[int]]:
    """Likelihoods of two batches of a task in one block, and how many positions each forward of the LLM read."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        injected = InjectedModel(foundation(), {"image": 5, "sound": 7}, settings(order=order)).eval()
        for name, value in injected.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.1)
    injected._fixed_cost = 0.0 if share else 1e9
    read: list[int] = []
    injected.llm.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["inputs_embeds"].shape[0] * kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    found = []
    with torch.no_grad(), injected.mixing(injected.alpha([task])):
        for batch in examples(task, 12, absent=0.3).batches(6):
            found += injected(encode(federated_model().eval(), [(task, batch)]))
    return torch.cat(found), read


@pytest.mark.parametrize("task", [IMAGE, LONG], ids=["short", "long"])
def test_a_question_read_once_scores_as_one_read_for_every_example(task: Classification) -> None:
    shared, read = asked(task, "task_first", share=True)
    plain, whole = asked(task, "task_first", share=False)
    torch.testing.assert_close(shared, plain, atol=1e-4, rtol=1e-5)
    question = len(Texts(foundation(), "task_first").prompt(task).before)
    print(f"{question} shared positions; read {read} against {whole}")
    assert read[0] == question
    assert sum(whole) - sum(read) == (12 - 1) * question


FAMILIES = {"qwen3": {"head_dim": 16}, "gemma3_text": {"head_dim": 16}, "mistral": {}, "phi3": {"pad_token_id": 0}}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_of_llms_share_a_question_and_are_asked_where_it_counts(family: str) -> None:
    sizes = {**SIZES, "vocab_size": 320, "num_key_value_heads": 2, "eos_token_id": 2, **FAMILIES[family]}
    with torch_seeded("family"):
        llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
        base = Foundation(family, llm, tokenizer(), {})
        injected = InjectedModel(base, {"image": 5, "sound": 7}, settings(order="task_first")).eval()
    parts = [(task, examples(task, 4, absent=0.3).batches(4)[0]) for task in (LONG, IMAGE)]
    groups = encode(federated_model().eval(), parts)
    alpha = injected.alpha([LONG, IMAGE])
    with torch.no_grad(), injected.mixing(alpha.repeat_interleave(4, 0)):
        together = injected(groups)
    injected._fixed_cost = 0.0
    for number, group in enumerate(groups):
        with torch.no_grad(), injected.mixing(alpha[number : number + 1]):
            torch.testing.assert_close(injected([group])[0], together[number], atol=1e-4, rtol=1e-5)
            assert injected._prefixes is not None
            assert injected._prefixes._layers, "the question was read once"


def test_where_the_modality_comes_first_hardly_anything_is_shared() -> None:
    _, read = asked(LONG, "modality_first", share=True)
    _, whole = asked(LONG, "modality_first", share=False)
    assert sum(whole) - sum(read) == 11, "the start token"


def prefixes(fixed_cost: float) -> PrefixCache:
    return PrefixCache(nn.Identity(), Windows({}), fixed_cost)


def test_a_beginning_is_read_where_that_saves_more_than_a_forward_costs() -> None:
    assert prefixes(11.0).pays((1, 2, 3), 5)
    assert not prefixes(12.0).pays((1, 2, 3), 5)
    assert not prefixes(0.0).pays((1, 2, 3), 1)


def test_training_between_two_scorings_is_heard() -> None:
    changes = {"order": "task_first", "num_epochs": 1, "lr": 1e-2}
    kept, fresh = (Injector(foundation(), federated_model(), (IMAGE, BOTH), settings(**changes), 0) for _ in range(2))
    held = examples(BOTH, 6)
    before = kept.score_set(held, 6)
    list(kept.inject(public(), 1))
    list(fresh.inject(public(), 1))
    assert torch.equal(kept.score_set(held, 6), fresh.score_set(held, 6))
    assert not torch.equal(kept.score_set(held, 6), before)
