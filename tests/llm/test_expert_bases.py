"""Experts on other bases: 4-bit, bfloat16, checkpointed; what cannot be done there is said, not done wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from medfed.core.errors import StudyError
from medfed.core.torch_rng import torch_seeded
from medfed.injection.experts import RoutedLoraModel, add_experts, load_experts, save_experts
from support.llm_toys import language_model, settings

IDS = torch.tensor([[1, 40, 77, 90, 3], [1, 12, 200, 5, 8]])
MIX = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])
WIDTHS = {"hidden_size": 64, "intermediate_size": 128}
"""Blocks of bitsandbytes are 64 wide."""


def four_bit(folder: Path) -> nn.Module:
    """The random Llama in nf4."""
    language_model(**WIDTHS).save_pretrained(folder)
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantised, dtype=torch.float32)
    return model


def with_experts(base: nn.Module, num_experts: int = 3) -> PeftModel:
    with torch_seeded("bases", "experts"):
        model = add_experts(base, settings(num_experts=num_experts, rank=2, alpha=8, dropout=0.0))
        for name, value in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(value, std=0.2)
    return model


def logits(model: PeftModel) -> Tensor:
    found: Tensor = model.base_model.model(input_ids=IDS, use_cache=False).logits
    return found


def applied(model: PeftModel, alpha: Tensor) -> Tensor:
    assert isinstance(model.base_model, RoutedLoraModel)
    with torch.no_grad(), model.base_model.routing.using(alpha):
        return logits(model)


def gradients(model: PeftModel) -> dict[str, Tensor]:
    """Of all experts and of α, after a training step's backward pass."""
    model.zero_grad()
    model.train()
    alpha = MIX.clone().requires_grad_()
    assert isinstance(model.base_model, RoutedLoraModel)
    with model.base_model.routing.using(alpha):
        logits(model).float().log_softmax(-1)[..., 7].sum().backward()
    assert alpha.grad is not None
    trained = {name: value.grad for name, value in model.named_parameters() if "lora_" in name}
    return {"alpha": alpha.grad, **{name: grad for name, grad in trained.items() if grad is not None}}


def test_experts_on_a_4_bit_llm_learn_and_come_back_whole(tmp_path: Path) -> None:
    model = with_experts(four_bit(tmp_path / "llm"))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert type(layer).__name__ == "Linear4bit"
    found, exact = gradients(model), gradients(with_experts(language_model(**WIDTHS)))
    assert found.keys() == exact.keys()
    assert len(found) == 1 + 2 * 14
    for name, gradient in found.items():
        alike = torch.cosine_similarity(gradient.flatten(), exact[name].flatten(), dim=0)
        assert alike > 0.8, f"{name}: nf4 rounds the base, it does not turn the gradient"
    save_experts(model, tmp_path / "adapter", "toy")
    again = load_experts(four_bit(tmp_path / "llm"), tmp_path / "adapter")
    assert torch.equal(applied(again.eval(), MIX), applied(model.eval(), MIX))


def test_experts_on_an_8_bit_llm_are_refused(tmp_path: Path) -> None:
    language_model(**WIDTHS).save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    with pytest.raises(StudyError, match=r"(?s)q_proj: experts cannot sit on a Linear8bitLt.*--load-in-4bit"):
        with_experts(base)


def test_gradients_on_a_4_bit_llm_are_the_same_after_an_evaluation(tmp_path: Path) -> None:
    model = with_experts(four_bit(tmp_path / "llm"))
    before = gradients(model)
    applied(model.eval(), MIX)
    after = gradients(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_experts_on_a_bfloat16_llm_get_float32_gradients_of_the_same_direction() -> None:
    found = gradients(with_experts(language_model(**WIDTHS).bfloat16()))
    exact = gradients(with_experts(language_model(**WIDTHS)))
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert torch.cosine_similarity(gradient.flatten(), exact[name].flatten(), dim=0) > 0.98, name


@pytest.mark.parametrize("options", [None, {"use_reentrant": False}])
def test_gradient_checkpoints_change_no_gradient(options: dict[str, bool] | None) -> None:
    model, plain = with_experts(language_model()), gradients(with_experts(language_model()))
    model.base_model.model.activation_checkpointing_enable(options)
    runs: list[object] = []
    model.base_model.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(None))
    found = gradients(model)
    assert len(runs) == 2, "the layer must have run again in the backward pass"
    assert found.keys() == plain.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-6, rtol=1e-5, msg=name)


def test_one_row_expanded_over_a_batch_is_one_row() -> None:
    routing = with_experts(language_model()).base_model.routing
    with routing.using(MIX[:1].expand(5, -1)):
        assert routing.scales.shape == (1, 6)
    with routing.using(MIX[:1].repeat(5, 1)):
        assert routing.scales.shape == (5, 6)
