"""The routed LoRA function: equal to a loop, right gradients, and as little kept for them as a plain LoRA keeps."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from medfed.core.errors import RunError
from medfed.core.torch_rng import torch_seeded
from medfed.injection.experts import RoutedLoraModel, add_experts, routed_lora, thinned
from medfed.llm.targets import target_modules
from support.llm_toys import kept_tensors, language_model, settings

IN, OUT, MIDDLE = 5, 4, 6
SHAPES = {
    "one row": ((2, 3, IN), 1),
    "a row each": ((2, 3, IN), 2),
    "flat": ((7, IN), 1),
    "four axes": ((2, 3, 2, IN), 2),
}


def parts(shape: tuple[int, ...], rows: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Input, frozen result, A, B and scales."""
    generator = torch.Generator().manual_seed(1)
    sizes = (shape, (*shape[:-1], OUT), (MIDDLE, IN), (OUT, MIDDLE), (rows, MIDDLE))
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for size in sizes]


def plain(x: Tensor, result: Tensor, down: Tensor, up: Tensor, scales: Tensor) -> Tensor:
    """The same by one example at a time, in PyTorch's own words."""
    examples = range(len(x)) if len(scales) > 1 else [slice(None)]
    found = [result[e] + F.linear(F.linear(x[e], down) * scales[n], up) for n, e in enumerate(examples)]
    return torch.stack(found) if len(scales) > 1 else found[0]


@pytest.mark.parametrize("name", SHAPES)
def test_the_function_equals_one_example_at_a_time_and_leaves_its_inputs_alone(name: str) -> None:
    given = parts(*SHAPES[name])
    before = [value.detach().clone() for value in given]
    torch.testing.assert_close(routed_lora(*given), plain(*given))
    assert all(torch.equal(value, old) for value, old in zip(given, before, strict=True))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_behind_a_frozen_layer_the_sum_is_right_in_place_and_beside_it(name: str, bias: bool) -> None:
    x, _, down, up, scales = parts(*SHAPES[name])
    frozen = nn.Linear(IN, OUT, bias=bias, dtype=torch.float64).requires_grad_(False)
    wanted = (x, down, up, scales)
    expected = plain(x, frozen(x), down, up, scales)
    result = frozen(x)
    found = routed_lora(x, result, down, up, scales)
    if not bias:  # with a bias and three axes, PyTorch's result is a view
        assert found.data_ptr() == result.data_ptr()
    torch.testing.assert_close(found, expected)
    seed = torch.randn(found.shape, dtype=torch.float64)
    gradients = zip(torch.autograd.grad(found, wanted, seed), torch.autograd.grad(expected, wanted, seed), strict=True)
    for gradient, true in gradients:
        torch.testing.assert_close(gradient, true)


def test_the_result_of_a_view_is_left_alone() -> None:
    x, result, down, up, scales = parts((2, 3, IN), 1)
    whole = result.detach().clone()
    view = whole.view(6, OUT).view(2, 3, OUT)
    torch.testing.assert_close(routed_lora(x, view, down, up, scales), plain(x, result, down, up, scales))
    assert torch.equal(whole, result)


def test_shapes_can_be_worked_out_without_numbers() -> None:
    given = [value.detach().to("meta") for value in parts((2, 3, IN), 2)]
    assert routed_lora(*given).shape == (2, 3, OUT)


@torch.inference_mode()
def test_a_result_with_gaps_is_right_where_views_are_not_known_as_such() -> None:
    x, result, down, up, scales = (value.detach().clone() for value in parts((2, 3, IN), 2))
    gaps = result.transpose(0, 1).contiguous().transpose(0, 1)
    assert not gaps.is_contiguous()
    torch.testing.assert_close(routed_lora(x, gaps, down, up, scales), plain(x, result, down, up, scales))


@pytest.mark.parametrize("name", SHAPES)
def test_every_gradient_is_that_of_finite_differences(name: str) -> None:
    assert torch.autograd.gradcheck(routed_lora, parts(*SHAPES[name]))


@pytest.mark.parametrize("wanted", range(5))
def test_a_gradient_comes_alone_too(wanted: int) -> None:
    given = [value.detach().requires_grad_(number == wanted) for number, value in enumerate(parts((2, 3, IN), 2))]

    def alone(x: Tensor, result: Tensor, *others: Tensor) -> Tensor:
        return routed_lora(x, result.clone(), *others)  # a fresh result, as a layer's is: it is overwritten

    assert torch.autograd.gradcheck(alone, given)


@pytest.mark.parametrize("shape", [(6, IN), (3, 2, IN)])
def test_rows_of_alpha_that_belong_to_nobody_are_refused(shape: tuple[int, ...]) -> None:
    given = parts(shape, 2)
    with pytest.raises(RunError, match=r"(?s)2 rows of α do not fit an input of shape .*one task per batch"):
        routed_lora(*given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_half_precision_layer_trains_float32_experts(dtype: torch.dtype, rows: int) -> None:
    x, result, down, up, scales = parts((2, 3, IN), rows, torch.float32)
    exact = torch.autograd.grad(routed_lora(x, result, down, up, scales).sum(), (x, down, up, scales))
    found = routed_lora(x.to(dtype), result.to(dtype), down, up, scales)
    assert found.dtype == dtype
    for gradient, true in zip(torch.autograd.grad(found.sum(), (x, down, up, scales)), exact, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, true, atol=0.1, rtol=0.05)


def test_autocast_chooses_the_dtype_of_the_frozen_layer_and_of_its_experts() -> None:
    x, _, down, up, scales = parts((2, 3, IN), 2, torch.float32)
    frozen = nn.Linear(IN, OUT).requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = routed_lora(x, frozen(x), down, up, scales)
        kept = routed_lora(x, frozen(x).float(), down, up, scales)  # bitsandbytes gives the dtype of x back
    assert (found.dtype, kept.dtype) == (torch.bfloat16, torch.float32)
    expected = plain(x, frozen(x), down, up, scales)
    torch.testing.assert_close(kept, expected, atol=0.05, rtol=0.02)
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.05)
    found.float().sum().backward()
    assert down.grad is not None
    assert down.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_keeps_its_input_and_the_middle_and_no_copy_of_a_weight(dtype: torch.dtype) -> None:
    x, result, down, up, scales = parts((2, 30, IN), 2, torch.float32)
    x, result = x.to(dtype).detach(), result.to(dtype).detach()
    kept = kept_tensors(lambda: routed_lora(x, result, down, up, scales))
    own = {value.data_ptr() for value in (x, down, up, scales)}
    print(f"60 tokens × {MIDDLE} directions × {dtype.itemsize} bytes, once")
    assert [tensor.nbytes for tensor in kept if tensor.data_ptr() not in own] == [60 * MIDDLE * dtype.itemsize]


class Looped(nn.Module):
    """A frozen layer and its experts one by one: the form that is not used."""

    def __init__(self, frozen: nn.Linear, alpha: Tensor, rank: int) -> None:
        super().__init__()
        self.frozen, self.alpha = frozen, alpha
        sizes = [(rank, frozen.in_features), (frozen.out_features, rank)]
        self.experts = nn.ParameterList([nn.Parameter(torch.randn(size)) for _ in alpha[0] for size in sizes])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.frozen(x)
        for p, mix in enumerate(self.alpha.T):
            out = out + mix[:, None, None] * F.linear(F.linear(x, self.experts[2 * p]), self.experts[2 * p + 1])
        return out


def test_activations_are_those_of_a_plain_lora_and_a_tenth_of_the_loop() -> None:
    experts, rank, tokens = 12, 8, 16
    alpha = torch.full((2, experts), 1 / experts).requires_grad_()
    x = torch.randn(2, tokens, 512).requires_grad_()
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    routed = add_experts(decoder(), settings(num_experts=experts, rank=rank, alpha=16, dropout=0.0)).base_model
    assert isinstance(routed, RoutedLoraModel)
    lora = get_peft_model(decoder(), LoraConfig(r=experts * rank, target_modules=list(names), task_type="CAUSAL_LM"))
    looped = decoder()
    for name, module in list(looped.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            looped.set_submodule(name, Looped(module, alpha, rank))

    frozen = kept_bytes(decoder(), x)
    with routed.routing.using(alpha):
        ours = kept_bytes(routed.model, x) - frozen
    theirs, loop = kept_bytes(lora.get_base_model(), x) - frozen, kept_bytes(looped, x) - frozen
    print(f"kept for the adapters of one layer: {ours} bytes; LoRA of rank 96 {theirs}; loop {loop}")
    assert ours <= 1.1 * theirs
    assert loop >= 10 * ours


def decoder() -> LlamaForCausalLM:
    """One layer, 512 wide."""
    sizes: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1344, "num_hidden_layers": 1, "vocab_size": 8}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=8, **sizes)).requires_grad_(False)


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of activations, parameters aside, that a forward pass keeps for its gradient."""
    weights = {value.data_ptr() for value in model.parameters()}
    kept = kept_tensors(lambda: model(inputs_embeds=x, use_cache=False, logits_to_keep=1).logits)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(size for address, size in storages.items() if address not in weights)


def test_thinning_keeps_its_share_and_passes_the_gradient_of_what_it_keeps() -> None:
    x = torch.full((200, 999), 2.0, dtype=torch.bfloat16, requires_grad=True)
    with torch_seeded("thin"):
        out, kept = thinned(x, 0.1)
    assert kept == 1 - 26 / 256
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert float((out == 0).float().mean()) == pytest.approx(26 / 256, abs=4 * math.sqrt(0.1 * 0.9 / x.numel()))
    assert all(float((out[:, n::8] == 0).float().mean()) == pytest.approx(0.1, abs=0.01) for n in range(8))
    out.float().sum().backward()
    assert torch.equal(x.grad != 0, out != 0)
    with torch_seeded("thin"):
        assert torch.equal(thinned(x, 0.1)[0], out)


def test_one_expert_in_low_precision_is_as_near_to_float32_as_pefts_lora() -> None:
    low = language_model(hidden_size=64).to(torch.bfloat16)
    exact = copy.deepcopy(low).float()
    ids = torch.arange(20).view(2, 10)
    config = LoraConfig(r=4, lora_alpha=4 * settings().alpha // settings().rank, target_modules=target_modules(low))
    fast = add_experts(copy.deepcopy(low), settings(num_experts=1, rank=4, alpha=config.lora_alpha)).eval()
    models = [fast, *(get_peft_model(llm, copy.deepcopy(config)).eval() for llm in (copy.deepcopy(low), exact))]
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in zip(*(adapters(model) for model in models), strict=True):
            each[0].normal_(std=0.2, generator=draws)
            for other in each[1:]:
                other.copy_(each[0])
        ours, stock, right = (model(input_ids=ids).logits.float() for model in models)
    error = float((stock - right).abs().mean())
    assert 0 < error < 0.1 * float((right - low(input_ids=ids).logits.float()).abs().mean())
    assert float((ours - right).abs().mean()) < 1.5 * error


def adapters(model: torch.nn.Module) -> list[torch.Tensor]:
    return [value for name, value in model.named_parameters() if ".lora_" in name]
