"""Adapter files: PEFT's reading and writing and ours give the same logits to the bit; an idle adapter is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, convert_to_lora
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medfed.core.errors import RunError
from medfed.core.torch_rng import torch_seeded
from medfed.injection.experts import add_experts, load_experts, save_experts
from medfed.injection.model import InjectedModel
from support.llm_toys import BOTH, IMAGE, foundation, language_model, settings

IDS = torch.tensor([[1, 40, 77, 90], [1, 12, 200, 5]])


def trained(num_experts: int) -> InjectedModel:
    """An LLM whose adapter and router are not as they were made."""
    with torch_seeded("adapter", "files"):
        model = InjectedModel(foundation(), {"image": 5, "sound": 7}, settings(num_experts=num_experts)).eval()
        for value in model.adapted.parameters() if model.adapted else ():
            if value.requires_grad:
                nn.init.normal_(value, std=0.2)
    return model


def answers(model: InjectedModel) -> tuple[Tensor, Tensor]:
    """α of two tasks and the logits of two examples, each with its own α."""
    with torch.no_grad():
        alpha = model.alpha([IMAGE, BOTH])
        with model.mixing(alpha):
            return alpha, model.llm(input_ids=IDS).logits


@pytest.mark.parametrize("num_experts", [1, 3])
@pytest.mark.parametrize("write", ["PEFT", "ours"])
@pytest.mark.parametrize("read", ["PEFT", "ours"])
def test_a_round_trip_gives_the_same_bits_router_included(
    tmp_path: Path, num_experts: int, write: str, read: str
) -> None:
    model = trained(num_experts)
    assert model.adapted is not None
    alpha, logits = answers(model)
    if write == "PEFT":
        model.adapted.save_pretrained(str(tmp_path))
    else:
        save_experts(model.adapted, tmp_path, "toy")
    again = trained(0)
    again.settings = model.settings
    if read == "PEFT":
        again.adapted = PeftModel.from_pretrained(again.llm, str(tmp_path))
    else:
        again.adapted = load_experts(again.llm, tmp_path)
    found_alpha, found = answers(again.eval())
    assert torch.equal(found_alpha, alpha)
    assert torch.equal(found, logits)
    assert (found - foundation().model(input_ids=IDS).logits).abs().max() > 0.1, "an idle adapter proves nothing"


@pytest.mark.parametrize("num_experts", [1, 3])
def test_an_adapter_that_changes_nothing_is_refused(tmp_path: Path, num_experts: int) -> None:
    untrained = add_experts(language_model(), settings(num_experts=num_experts, rank=2, alpha=8, dropout=0.0))
    save_experts(untrained, tmp_path, "toy")
    with pytest.raises(RunError, match="changes no logit"):
        load_experts(language_model(), tmp_path)


def test_keys_that_land_nowhere_are_refused(tmp_path: Path) -> None:
    model = trained(3)
    assert model.adapted is not None
    save_experts(model.adapted, tmp_path, "toy")
    path = tmp_path / SAFETENSORS_WEIGHTS_NAME
    save_file({name.replace("layers.", "blocks."): value for name, value in load_file(path).items()}, path)
    with pytest.raises(RunError, match=r"does not belong to this LLM \(56 such\)"):  # 28 offered, 28 sought
        load_experts(language_model(), tmp_path)


def test_loading_leaves_the_adapter_as_it_was_written(tmp_path: Path) -> None:
    model = trained(3)
    assert model.adapted is not None
    save_experts(model.adapted, tmp_path / "first", "toy")
    save_experts(load_experts(language_model(), tmp_path / "first"), tmp_path / "second", "toy")
    first, second = (load_file(tmp_path / name / SAFETENSORS_WEIGHTS_NAME) for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_neither_the_head_nor_the_embeddings_carry_or_save_anything(tmp_path: Path) -> None:
    model = add_experts(language_model(tie_word_embeddings=True), settings(rank=2, alpha=8, dropout=0.0))
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    assert len(adapted) == 14
    assert not any("lm_head" in name or "embed" in name for name in adapted)
    model.save_pretrained(str(tmp_path))
    saved = load_file(tmp_path / SAFETENSORS_WEIGHTS_NAME)
    assert not any("lm_head" in name or "embed" in name for name in saved)


def test_routed_experts_are_not_passed_off_as_a_plain_lora() -> None:
    model = trained(3)
    with pytest.raises(TypeError, match="not support"):
        convert_to_lora(model.adapted, rank=2)
