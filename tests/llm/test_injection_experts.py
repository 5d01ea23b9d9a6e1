"""Experts: the identity at first, equal to a loop over experts, whole after a round trip."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from medfed.core.errors import RunError
from medfed.injection.experts import RoutedLoraModel, add_experts, load_experts, save_experts
from medfed.llm.targets import projections
from medfed.study.injection import InjectionSettings
from support.llm_toys import foundation, language_model

P, RANK, ALPHA = 3, 2, 8
SETTINGS = InjectionSettings(num_experts=P, rank=RANK, alpha=ALPHA, dropout=0.0)
IDS = torch.tensor([[1, 40, 77, 90], [1, 12, 200, 5]])
MIX = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])


def adapted(*, trained: bool = True, dtype: torch.dtype = torch.float32) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = add_experts(language_model().to(dtype), SETTINGS)
        if trained:
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(value, std=0.2)
    return model.eval()


def logits(model: PeftModel, alpha: Tensor, ids: Tensor = IDS) -> Tensor:
    tuner = model.base_model
    assert isinstance(tuner, RoutedLoraModel)
    with torch.no_grad(), tuner.routing.using(alpha):
        found: Tensor = model.get_base_model()(input_ids=ids).logits
    return found


def test_untrained_experts_change_nothing_at_all() -> None:
    base = language_model()(input_ids=IDS).logits
    assert torch.equal(logits(adapted(trained=False), MIX), base)


def test_the_fused_form_equals_a_loop_over_experts_with_the_scaling_of_each() -> None:
    layer = adapted().get_base_model().model.layers[0].self_attn.q_proj
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    expected = F.linear(x, layer.base_layer.weight)
    for example, mix in enumerate(MIX):
        for p in range(P):
            rows = slice(p * RANK, (p + 1) * RANK)
            scaling = ALPHA / RANK  # a/r of one expert, not of all P·r directions
            expected[example] += scaling * mix[p] * (x[example] @ down[rows].T @ up[:, rows].T)
    print(f"a/r = {ALPHA}/{RANK} = {ALPHA / RANK}; PEFT is told r = {P * RANK}, lora_alpha = {P * ALPHA}")
    tuner = adapted().base_model
    with tuner.routing.using(MIX):
        found = tuner.model.model.layers[0].self_attn.q_proj(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_with_the_papers_recipe_the_experts_are_eq_5_without_a_factor() -> None:
    settings = InjectionSettings.model_validate({"recipe": "paper", "num_experts": P, "rank": RANK})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = add_experts(language_model(), settings)
        for name, value in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.2)
    tuner = model.eval().base_model
    layer = tuner.model.model.layers[1].mlp.down_proj
    frozen, down, up = layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    h = torch.randn(2, 3, frozen.shape[1], generator=torch.Generator().manual_seed(0))
    with tuner.routing.using(MIX):
        found = layer(h)
    for example, mix in enumerate(MIX):
        for token in range(3):
            c = frozen @ h[example, token]
            for p in range(P):
                a_p, b_p = down[p * RANK : (p + 1) * RANK], up[:, p * RANK : (p + 1) * RANK]
                c = c + mix[p] * (b_p @ (a_p @ h[example, token]))
            torch.testing.assert_close(found[example, token], c, atol=1e-5, rtol=1e-5)


def test_every_example_is_mixed_by_its_own_row() -> None:
    together = logits(adapted(), MIX)
    for row in range(len(MIX)):
        torch.testing.assert_close(
            together[row : row + 1], logits(adapted(), MIX[row : row + 1], IDS[row : row + 1]), atol=1e-5, rtol=1e-5
        )
    swapped = logits(adapted(), MIX.flip(0))
    assert (together - swapped).abs().max() > 0.1, "the rows must matter"


@pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter", "unmerge_adapter"])
def test_experts_of_several_tasks_cannot_be_merged_into_one_weight(merge: str) -> None:
    model = adapted()
    if merge == "unmerge_adapter":
        model.get_base_model().model.layers[0].self_attn.q_proj.merged_adapters.append("default")
    for safe in ({}, {"safe_merge": True}) if merge != "unmerge_adapter" else ({},):
        with pytest.raises(RunError, match="--merge"), model.base_model.routing.using(MIX[:1]):
            getattr(model, merge)(**safe)


def test_experts_without_weights_refuse_to_run() -> None:
    with pytest.raises(RunError, match="no weights"):
        adapted().get_base_model()(input_ids=IDS)


def test_all_projections_and_nothing_else_carry_experts() -> None:
    names = projections(language_model())
    print("2 layers × (q k v o + gate up down) = 2 × 7 = 14")
    assert len(names) == 14
    assert not any("embed" in name or "head" in name for name in names)
    carried = {name for name, _ in adapted().get_base_model().named_modules() if name.endswith("lora_A")}
    assert carried == {f"{name}.lora_A" for name in names}


def test_a_saved_adapter_comes_back_whole(tmp_path: Path) -> None:
    model = adapted()
    save_experts(model, tmp_path, "toy")
    saved = load_file(tmp_path / SAFETENSORS_WEIGHTS_NAME)
    print("14 projections × (A, B) + router (query, key, value, 2 × (weight, bias)) = 28 + 7 = 35")
    assert len(saved) == 35
    again = load_experts(language_model(), tmp_path)
    assert torch.equal(logits(again.eval(), MIX), logits(model, MIX))
    for name, value in model.base_model.router.state_dict().items():
        assert torch.equal(again.base_model.router.state_dict()[name], value), name


@pytest.mark.parametrize("lost", ["router.mlp.0.bias", "layers.1.mlp.down_proj.lora_B.weight"])
def test_an_adapter_that_lacks_a_tensor_is_refused(tmp_path: Path, lost: str) -> None:
    save_experts(adapted(), tmp_path, "toy")
    path = tmp_path / SAFETENSORS_WEIGHTS_NAME
    tensors = load_file(path)
    gone = next(name for name in tensors if name.endswith(lost))
    del tensors[gone]
    save_file(tensors, path)
    with pytest.raises(RunError, match=re.escape(gone)):
        load_experts(language_model(), tmp_path)


def test_one_expert_is_the_plain_lora_of_peft() -> None:
    model = add_experts(language_model(), SETTINGS.model_copy(update={"num_experts": 1}))
    assert str(model.peft_config["default"].peft_type.value) == "LORA"
    assert model.get_base_model().model.layers[0].self_attn.q_proj.scaling["default"] == ALPHA / RANK


def test_a_bfloat16_model_keeps_float32_experts_and_its_own_dtype() -> None:
    model = adapted(dtype=torch.bfloat16)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.dtype == torch.float32
    found = logits(model, MIX)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), logits(adapted(), MIX), atol=0.5, rtol=0.1)


def test_a_shared_copy_adapts_without_touching_the_foundation() -> None:
    base = foundation()
    before, names = base.fingerprint(), [name for name, _ in base.model.named_modules()]
    model = add_experts(base.shared_copy(), SETTINGS)
    frozen = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    assert frozen is base.model.model.layers[0].self_attn.q_proj.weight, "the weights are shared, not copied"
    assert [name for name, _ in base.model.named_modules()] == names
    assert base.fingerprint() == before
    with torch.no_grad():
        frozen[0, 0] += 1e-3
    assert base.fingerprint() != before, "a fingerprint that misses a changed weight proves nothing"
