"""Experts: P low-rank updates of every attention and MLP projection, mixed by the router (FedKIM Eq. 5).

out = W h + (a/r) Σ_p α_p B_p A_p h. α does not depend on the token, so the sum is one LoRA of rank P·r whose middle
activations are scaled by α: that is how it is computed, never as a loop over experts. ``lora_A`` is ``[P·r, in]`` and
``lora_B`` ``[out, P·r]``, expert p owning rows (columns) p·r to (p+1)·r. B starts at 0, so injection starts as the
identity.

The experts are a PEFT tuner of its own type, with the router as a child that is saved along.

Deviation: the scaling is a/r *per expert* (the released code drops it), so PEFT's ``lora_alpha`` here is P·a.

How α reaches the experts of all layers, and how one layer applies its experts.

PEFT's LoRA layer holds a :class:`RoutedVariant` where it would otherwise compute a plain LoRA; all variants of a model
share one :class:`Routing`.

The routed LoRA itself: ``result + (s ∘ (x Aᵀ)) Bᵀ`` as one function with its own gradient (FedKIM Eq. 5).

As written, automatic differentiation would keep the middle activations twice, plain and scaled, and copies of A and B
wherever their dtype is not the LLM's. Here a layer keeps what a plain LoRA of the same rank keeps: its input, which the
q, k and v projections share, and the middle activations. The sum is taken by the second matrix product itself (addmm).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraLayer, LoraModel
from peft.tuners.lora.layer import LoraVariant
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from medfed.core.errors import RunError, StudyError
from medfed.injection.router import Router
from medfed.llm.huggingface import keep_layout, refuse_quantised
from medfed.llm.targets import target_modules
from medfed.study.injection import RouterSettings

PEFT_TYPE = "ROUTED_LORA"
ADAPTER = "default"
HONOURS_VARIANTS = frozenset({"Linear", "Linear4bit"})
"""PEFT's LoRA layers that are shown to apply a variant; another might leave α out silently."""


@dataclass
class RoutedLoraConfig(LoraConfig):  # type: ignore[misc]
    """PEFT's settings of the experts: ``r`` is P·r, ``lora_alpha`` P·a; ``router`` holds :class:`RouterSettings`."""

    num_experts: int = 1
    router: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take the type's own name, which PEFT's enumeration does not know."""
        super().__post_init__()
        self.peft_type = PEFT_TYPE


class RoutedLoraModel(LoraModel):  # type: ignore[misc]
    """LoRA layers that share one router and one α."""

    def _pre_injection_hook(self, model: nn.Module, config: RoutedLoraConfig, adapter_name: str) -> None:
        layers = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
        self.routing = Routing(config.r // config.num_experts, config.lora_alpha / config.r, layers)
        width = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        router = Router(width, config.num_experts, RouterSettings.model_validate(config.router))
        self.router = nn.ModuleDict({adapter_name: router.requires_grad_(not config.inference_mode)})

    def _post_injection_hook(self, model: nn.Module, config: RoutedLoraConfig, adapter_name: str) -> None:
        for name, layer in model.named_modules():
            if isinstance(layer, LoraLayer):
                if type(layer).__name__ not in HONOURS_VARIANTS:
                    raise StudyError(
                        f"experts cannot sit on a {type(layer).__name__}",
                        where=name,
                        hint="load the LLM in 4 bits (--load-in-4bit) or unquantised",
                    )
                layer.lora_variant[adapter_name] = RoutedVariant(self.routing)
                layer.cast_input_dtype_enabled = False

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f".{adapter_name}.", ".", 1)


PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = RoutedLoraConfig
PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = RoutedLoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = RoutedLoraModel.prefix


def add_experts(
    model: nn.Module, num_experts: int, rank: int, alpha: int, dropout: float, router: RouterSettings
) -> PeftModel:
    """Wrap every attention and MLP projection of ``model``, in place, with experts; all else is frozen.

    With ``num_experts=1`` there is nothing to route: the result is PEFT's plain LoRA (FedPlug_L).

    Args:
        model: a causal LM.
        num_experts: P, at least 1.
        rank: r of one expert.
        alpha: a; an expert's output is scaled by a/r.
        dropout: on the input of A.
        router: how the router reads descriptions.
    """
    keep_layout(model)
    targets = target_modules(model)
    common = {"target_modules": targets, "lora_dropout": dropout, "bias": "none", "task_type": "CAUSAL_LM"}
    if num_experts == 1:
        return _wrapped(model, LoraConfig(r=rank, lora_alpha=alpha, **common))
    routed = RoutedLoraConfig(
        r=num_experts * rank,
        lora_alpha=num_experts * alpha,
        num_experts=num_experts,
        router=router.model_dump(),
        **common,
    )
    return _wrapped(model, routed)


@torch.no_grad()
def flattens(tuner: RoutedLoraModel) -> bool:
    """Return whether layers with experts see examples and tokens on one axis, so that a batch can have but one α.

    Two examples of a token are shown to the LLM, each with an α of its own; call it in eval mode.
    """
    table = tuner.model.get_input_embeddings().weight
    num_experts = tuner.peft_config[ADAPTER].num_experts
    alpha = torch.full((2, num_experts), 1 / num_experts, device=table.device)
    try:
        with tuner.routing.using(alpha):
            tuner.model(input_ids=torch.arange(2, device=table.device).unsqueeze(1), use_cache=False)
    except RunError:
        return True
    return False


def _wrapped(model: nn.Module, config: LoraConfig) -> PeftModel:
    with warnings.catch_warnings():
        # PEFT asks transformers by a name that transformers has deprecated; nobody here can mend that.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, config)


def save_experts(adapted: PeftModel, folder: Path, base: str, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapter, router included, in PEFT's layout.

    Args:
        adapted: the LLM with its adapter.
        folder: where to.
        base: names the LLM that the adapter belongs to.
        state: the weights by their names in ``adapted``, where those there are sharded.
    """
    adapted.peft_config[ADAPTER].base_model_name_or_path = base
    adapted.save_pretrained(str(folder), save_embedding_layers=False, state_dict=state)
    (folder / "README.md").unlink()  # an empty form
    order_config(folder)


def order_config(folder: Path) -> None:
    """Write PEFT's configuration in ``folder`` anew, so that equal settings are equal bytes."""
    path = folder / CONFIG_NAME
    settings = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(settings["target_modules"], list):
        settings["target_modules"] = sorted(settings["target_modules"])  # a set, in another order every run
    path.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_experts(model: nn.Module, folder: Path) -> PeftModel:
    """Wrap ``model``, in place, with the adapter that :func:`save_experts` wrote.

    Raises:
        RunError: the adapter lacks a tensor that this model expects, has one too many, or changes nothing.
    """
    keep_layout(model)
    adapted = PeftModel.from_pretrained(model, str(folder))
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt") as file:
        found = set(file.keys())
    if wrong := sorted(expected ^ found):
        side = "is missing" if wrong[0] in expected else "does not belong to this LLM"
        raise RunError(f"{side} ({len(wrong)} such)", where=f"tensor {wrong[0]!r}", hint="use the LLM it was made for")
    if not _changes_logits(adapted):
        raise RunError(
            "the adapter changes no logit of the LLM: its B is zero, or it was made for another one",
            where=folder,
            hint="use the adapter of a run that has trained its experts",
        )
    return adapted


@torch.no_grad()
def _changes_logits(adapted: PeftModel) -> bool:
    """Whether a few tokens get other logits with the adapter, its experts mixed equally, than without."""
    table = adapted.get_input_embeddings().weight
    ids = torch.arange(min(4, len(table)), device=table.device).unsqueeze(0)
    tuner = adapted.base_model
    mixing: AbstractContextManager[None] = nullcontext()
    if isinstance(tuner, RoutedLoraModel):
        num_experts = adapted.peft_config[ADAPTER].num_experts
        mixing = tuner.routing.using(torch.full((1, num_experts), 1 / num_experts, device=table.device))
    with mixing:
        with_adapter = tuner.model(input_ids=ids, use_cache=False).logits
    with adapted.disable_adapter():
        without = tuner.model(input_ids=ids, use_cache=False).logits
    return not torch.equal(with_adapter, without)


class Routing:
    """Where the experts of all layers find α.

    Keep the block open through the backward pass: gradient checkpointing runs the layers again there.

    Args:
        rank: r, directions per expert.
        scaling: a/r.
        layers: the LLM's layers that can be checkpointed.
    """

    def __init__(self, rank: int, scaling: float, layers: Iterable[nn.Module] = ()) -> None:
        self._rank, self._scaling, self._layers = rank, scaling, tuple(layers)
        self._scales: Float[Tensor, "batch middle"] | None = None

    @contextmanager
    def using(self, alpha: Float[Tensor, "batch expert"]) -> Iterator[None]:
        """Scale the experts by ``alpha`` inside the block; one row serves a whole batch.

        Raises:
            RunError: α is to be trained through reentrant checkpoints.
        """
        if alpha.requires_grad:
            self._refuse_reentrant()
        if len(alpha) > 1 and alpha.stride(0) == 0:  # one row, expanded
            alpha = alpha[:1]
        before, self._scales = self._scales, alpha.repeat_interleave(self._rank, dim=-1) * self._scaling
        try:
            yield
        finally:
            self._scales = before

    @property
    def scales(self) -> Float[Tensor, "batch middle"]:
        """α·a/r, repeated over the directions of every expert."""
        if self._scales is None:
            raise RunError("the experts have no weights", where="router", hint="run the model inside routing.using(α)")
        return self._scales

    def _refuse_reentrant(self) -> None:
        """A reentrant checkpoint goes backward layer by layer, and α's graph is gone after the first."""
        for layer in self._layers:
            if not getattr(layer, "gradient_checkpointing", False):
                continue
            options = getattr(layer._gradient_checkpointing_func, "keywords", {})
            if options.get("use_reentrant", True):
                raise RunError(
                    "α cannot be trained through reentrant gradient checkpoints",
                    where="gradient_checkpointing_kwargs",
                    hint='call gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})',
                )


class RoutedVariant(LoraVariant):  # type: ignore[misc] # PEFT is untyped
    """How one layer applies its experts; held by PEFT's LoRA layer."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    def supports_lora_conversion(self) -> bool:
        """A routed layer is no plain LoRA."""
        return False

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: object) -> Tensor:
        """Add the experts' output to the frozen layer's ``result``, in its dtype; A and B keep their own."""
        down, up = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        return routed_lora(module.lora_dropout[active_adapter](x), result, down, up, self._routing.scales)

    def merge_safe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return W + scaling Σ α_p B_p A_p for the one α in use."""
        return self._sum(module, active_adapter, orig_weight, 1)

    def merge_unsafe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        """Add the experts to the weight in place."""
        orig_weight.data.copy_(self._sum(module, active_adapter, orig_weight, 1))

    def unmerge(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Take the experts out again; the same α must be in use."""
        return self._sum(module, active_adapter, orig_weight, -1)

    def _sum(self, module: LoraLayer, adapter: str, weight: Tensor, sign: int) -> Tensor:
        """Return the weight with the experts added, or taken off, in float64, then rounded once."""
        refuse_quantised(module.get_base_layer())
        scales = self._routing.scales
        if len(scales) != 1:
            raise RunError(f"{len(scales)} tasks cannot be merged into one weight", where="router", hint="merge one α")
        up = (module.lora_B[adapter].weight * scales).double()
        summed: Tensor = weight.double() + sign * up @ module.lora_A[adapter].weight.double()
        return summed.to(weight.dtype)


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, None]


def routed_lora(
    x: Float[Tensor, "*batch in"],
    result: Float[Tensor, "*batch out"],
    down: Float[Tensor, "middle in"],
    up: Float[Tensor, "out middle"],
    scales: Float[Tensor, "example middle"],
) -> Float[Tensor, "*batch out"]:
    """Add what the experts make of a frozen layer's input to its ``result``, and return the sum.

    Everything is computed in the dtype of ``result`` (with autocast: what autocast chose there), and gradients arrive
    in the dtype of what they belong to.

    Args:
        x: input of the layer, after dropout.
        result: output of the frozen layer, which must not need it for its own gradient; overwritten by the sum unless
            it is a view, a leaf that takes a gradient, or not contiguous.
        down: A of all experts.
        up: B of all experts.
        scales: α·a/r of every direction; one row for all of ``x``, or a row for each of its first axis.

    Raises:
        RunError: ``scales`` has several rows, and the first axis of ``x`` is not that of the examples.
    """
    if len(scales) > 1 and (x.dim() < 3 or len(x) != len(scales)):
        raise RunError(
            f"{len(scales)} rows of α for an input of shape {list(x.shape)}: whose row is whose is lost",
            where="experts",
            hint="layers that flatten examples and tokens (mixtures of experts) take one task per batch",
        )
    in_place = result.is_contiguous() and not (result._is_view() or (result.is_leaf and result.requires_grad))
    plainly: AbstractContextManager[object] = nullcontext()
    if torch.amp.is_autocast_available(x.device.type):  # not for shapes alone, on "meta"
        plainly = torch.autocast(x.device.type, enabled=False)
    with plainly:
        added: Tensor = _RoutedLora.apply(x, result, down, up, scales, in_place)  # type: ignore[no-untyped-call]
    return added


class _RoutedLora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, result: Tensor, down: Tensor, up: Tensor, scales: Tensor, in_place: bool
    ) -> Tensor:
        dtype = result.dtype
        middle = x.to(dtype) @ down.to(dtype).T
        ctx.save_for_backward(x, middle, down, up, scales)
        scaled = _flat(_scaled(middle, scales))
        if in_place:
            ctx.mark_dirty(result)
            _flat(result).addmm_(scaled, up.to(dtype).T)
            return result
        return torch.addmm(_flat(result), scaled, up.to(dtype).T).view_as(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Gradients:
        x, middle, down, up, scales = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_x, _, needs_down, needs_up, needs_scales, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
        grad_x = grad_down = grad_up = grad_scales = None
        grad_scaled = grad @ up.to(grad.dtype)
        if needs_up or needs_scales:
            grad_up, grad_scales = _up_and_scales(grad, grad_scaled, middle, up, scales)
        grad_middle = _scaled(grad_scaled, scales)
        if needs_down:
            grad_down = (_flat(grad_middle).T @ _flat(x).to(grad.dtype)).to(down.dtype)
        if needs_x:
            grad_x = (grad_middle @ down.to(grad.dtype)).to(x.dtype)
        return grad_x, grad, grad_down, grad_up, grad_scales, None


def _up_and_scales(
    grad: Float[Tensor, "*batch out"],
    grad_scaled: Float[Tensor, "*batch middle"],
    middle: Float[Tensor, "*batch middle"],
    up: Float[Tensor, "out middle"],
    scales: Float[Tensor, "example middle"],
) -> tuple[Float[Tensor, "out middle"], Float[Tensor, "example middle"]]:
    """Return the gradients of B and of the scales; with one row both come from one product over all tokens."""
    if len(scales) == 1:
        product = (_flat(grad).T @ _flat(middle)).to(up.dtype)
        return product * scales.to(up.dtype), (product * up).sum(0, keepdim=True).to(scales.dtype)
    grad_up = _flat(grad).T @ _flat(_scaled(middle, scales))
    products = (grad_scaled * middle).to(scales.dtype)
    return grad_up.to(up.dtype), products.flatten(1, -2).sum(1)


def _scaled(
    middle: Float[Tensor, "*batch middle"], scales: Float[Tensor, "example middle"]
) -> Float[Tensor, "*batch middle"]:
    rows = scales.to(middle.dtype)
    if len(rows) == 1:
        return middle * rows
    return middle * rows.view(len(rows), *(1 for _ in middle.shape[1:-1]), rows.shape[-1])


def _flat(values: Float[Tensor, "*batch width"]) -> Float[Tensor, "row width"]:
    return values.flatten(0, -2)
