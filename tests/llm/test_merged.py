"""Merging an update into frozen weights: added once, the model untouched, quantised weights refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from medfed.core.errors import RunError
from medfed.export.export import merged_weights, save_merged
from medfed.export.lowrank import Factors, folded
from medfed.injection.model import InjectedModel
from medfed.llm.foundation import Foundation
from medfed.llm.huggingface import refuse_quantised
from support.finished_runs import llm_folder
from support.llm_toys import IMAGE, language_model, settings, tokenizer

LAYER = "model.layers.1.mlp.down_proj"


def update() -> dict[str, Factors]:
    generator = torch.Generator().manual_seed(0)
    return {LAYER: Factors(torch.randn(3, 48, generator=generator), torch.randn(32, 3, generator=generator))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_update_is_added_to_its_layer_alone_and_the_model_stays(dtype: torch.dtype) -> None:
    model, factors = language_model().to(dtype), update()[LAYER]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged = merged_weights(model, update())
    expected = (before[f"{LAYER}.weight"].double() + factors.up.double() @ factors.down.double()).to(dtype)
    assert torch.equal(merged[f"{LAYER}.weight"], expected)
    assert merged.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name
        assert name == f"{LAYER}.weight" or torch.equal(merged[name], value), name


@torch.no_grad()
def test_merged_experts_are_the_applied_ones() -> None:
    frozen = Foundation("toy", language_model(), tokenizer(), {})
    injected = InjectedModel(frozen, {"image": 5}, settings()).eval()
    generator = torch.Generator().manual_seed(0)
    for name, value in injected.named_parameters():
        if "lora_B" in name:
            value.data.normal_(std=0.2, generator=generator)
    ids = torch.tensor([[1, 40, 77, 90, 3]])
    with injected.mixing(injected.alpha([IMAGE])):
        applied = injected.llm(input_ids=ids, use_cache=False).logits
    merged = language_model()
    merged.load_state_dict(merged_weights(frozen.model, folded(injected, IMAGE)))
    torch.testing.assert_close(merged(input_ids=ids).logits, applied, atol=1e-4, rtol=1e-4)
    assert (frozen.model(input_ids=ids).logits - applied).abs().max() > 0.1


def test_a_layer_without_a_weight_is_refused() -> None:
    with pytest.raises(RunError, match="NoneType"):
        refuse_quantised(torch.nn.Identity())


def test_a_4_bit_model_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    quantised = AutoModelForCausalLM.from_pretrained(
        llm_folder(tmp_path), quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match=r"quantised[\s\S]*without --merge"):
        save_merged(quantised, update(), tmp_path / "out", str(tmp_path / "llm"), None)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("tied", [False, True])
def test_a_merged_folder_loads_with_the_update_in_it_tied_embeddings_or_not(tied: bool, tmp_path: Path) -> None:
    folder, ids = llm_folder(tmp_path, tie_word_embeddings=tied), torch.tensor([[1, 40, 77, 90]])
    model, factors = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), update()[LAYER]
    (tmp_path / "out").mkdir()
    save_merged(model, update(), tmp_path / "out", str(folder), None)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        base = model(input_ids=ids).logits
        model.get_submodule(LAYER).weight += factors.up @ factors.down
        expected, found = model(input_ids=ids).logits, again(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (expected - base).abs().max() > 0.1
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("Yes") == AutoTokenizer.from_pretrained(
        folder
    ).encode("Yes")
