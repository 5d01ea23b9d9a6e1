"""Likelihoods over shared prefixes equal those of plain transformers; what is kept on disk is the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from medfed.llm.forward import windows_of
from medfed.llm.foundation import Foundation
from medfed.llm.language_model import LanguageModel
from medfed.llm.likelihood import Store, log_likelihoods
from medfed.llm.trie import Continuation, packs
from support.llm_toys import FAMILIES, language_model, tokenizer, write_model

SYSTEM = (5, 6, 7, 8, 9, 10)
CONTINUATIONS = [
    Continuation((*SYSTEM, 20, 21), (30,)),
    Continuation((*SYSTEM, 20, 21), (31, 32, 33)),
    Continuation((*SYSTEM, 20, 21), (31, 32)),
    Continuation((*SYSTEM, 20, 22, 23, 24), (30,)),
    Continuation((*SYSTEM, 25), (30, 31)),
    Continuation((11, 12, 13), (30,)),
    Continuation((*SYSTEM, 20), (21, 30)),
]


def plain(llm: torch.nn.Module, one: Continuation) -> float:
    """The same by one forward of the whole text."""
    ids = torch.tensor([[*one.prompt, *one.text]])
    with torch.no_grad():
        logits = llm(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    first = len(one.prompt) - 1
    return sum(float(logits[first + n, token]) for n, token in enumerate(one.text))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_gives_the_likelihoods_of_plain_transformers(family: str, tmp_path: Path) -> None:
    llm = AutoModelForCausalLM.from_pretrained(write_model(tmp_path, family)).eval()
    found = log_likelihoods(llm, windows_of(llm), CONTINUATIONS)
    assert found == pytest.approx([plain(llm, one) for one in CONTINUATIONS], abs=1e-4)
    assert np.ptp(found) > 1


def test_shared_tokens_are_computed_once() -> None:
    (pack,) = packs(CONTINUATIONS, 512)
    tree = {path[:length] for one in CONTINUATIONS for path in [one.prompt + one.text[:-1]] for length in range(1, 99)}
    assert len(pack.tokens) == len({path for path in tree if path})


@pytest.mark.parametrize("most_tokens", [1, 9, 11, 15])
def test_packs_hold_all_continuations_once_and_keep_to_their_size(most_tokens: int) -> None:
    parts = list(packs([*CONTINUATIONS, *CONTINUATIONS], most_tokens))
    held = [one for pack in parts for one in pack.continuations]
    assert sorted(held) == sorted(CONTINUATIONS)
    assert all(len(pack.tokens) <= most_tokens or len(pack.continuations) == 1 for pack in parts)
    assert len(parts) > 1


def test_the_layout_does_not_depend_on_the_order() -> None:
    assert [pack.key for pack in packs(CONTINUATIONS, 12)] == [pack.key for pack in packs(CONTINUATIONS[::-1], 12)]


def test_small_packs_and_large_ones_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = language_model()
    whole = log_likelihoods(llm, windows_of(llm), CONTINUATIONS)
    monkeypatch.setattr("medfed.llm.likelihood.TOKENS_AT_ONCE", 9)
    assert log_likelihoods(llm, windows_of(llm), CONTINUATIONS) == pytest.approx(whole, abs=1e-5)


class Counting(torch.nn.Module):
    """Counts the forwards of a model."""

    def __init__(self, llm: torch.nn.Module) -> None:
        super().__init__()
        self.llm, self.calls = llm, 0
        self.get_input_embeddings, self.get_output_embeddings = llm.get_input_embeddings, llm.get_output_embeddings

    def forward(self, **given: object) -> object:
        self.calls += 1
        return self.llm(**given)


def kept(llm: torch.nn.Module, store: Store | None) -> Sequence[float]:
    return list(log_likelihoods(llm, windows_of(llm.llm), CONTINUATIONS, store))


def test_what_is_on_disk_is_not_computed_again_and_belongs_to_one_llm(tmp_path: Path) -> None:
    llm = Counting(language_model())
    first = kept(llm, Store(tmp_path / "kept", {"weights": "a"}))
    assert llm.calls == 1
    assert kept(llm, Store(tmp_path / "kept", {"weights": "a"})) == first
    assert llm.calls == 1
    kept(llm, Store(tmp_path / "kept", {"weights": "b"}))
    assert llm.calls == 2


def test_questions_and_answers_are_a_table() -> None:
    foundation = Foundation("toy", language_model(), tokenizer(), {"sha256": "0" * 64})
    model = LanguageModel(foundation)
    table = model.likelihood(["Is it round?", "Is it red?"], ("Yes", "No", "a red thing"))
    assert table.shape == (2, 3)
    assert model.log_odds("Is it red?", ("Yes", "No")) == pytest.approx([table[1, 0] - table[1, 1]], abs=1e-5)
    assert model.likelihoods([("Is it red?", "No")]) == pytest.approx([table[1, 1]], abs=1e-5)
