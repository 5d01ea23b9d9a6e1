"""Experts: P low-rank updates of every attention and MLP projection, mixed by the router (FedKIM Eq. 5).

out = W h + (a/r) Σ_p α_p B_p A_p h. α does not depend on the token. The sum is therefore one LoRA of rank P·r whose
middle activations are scaled by α, never a loop over experts. ``lora_A`` is ``[P·r, in]``, ``lora_B`` ``[out, P·r]``.
Expert p owns rows (columns) p·r to (p+1)·r. B starts at 0, so injection starts as the identity.

They are a PEFT tuner of its own type, with the router as a child that is saved along. PEFT's LoRA layers compute
:func:`routed_lora` instead of a plain LoRA; all of them read α from one :class:`Routing`.

Deviation: the scaling is a/r *per expert* (the released code drops it), so PEFT's ``lora_alpha`` here is P·a.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

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
from medfed.llm.huggingface import keep_layout
from medfed.llm.targets import target_modules
from medfed.study.injection import InjectionSettings, RouterSettings

ADAPTER = "default"
"""PEFT's name of the one adapter."""

_PEFT_TYPE = "ROUTED_LORA"
_ROUTABLE = frozenset({"Linear", "Linear4bit"})
"""PEFT's LoRA layers that are known to apply a variant; another might leave α out silently."""


def add_experts(model: nn.Module, settings: InjectionSettings) -> PeftModel:
    """Wrap every attention and MLP projection of a causal LM, in place, with experts; all else is frozen.

    With ``num_experts=1`` there is nothing to route: the result is PEFT's plain LoRA (FedPlug_L). In an LLM of low
    precision its layers compute :func:`routed_lora` with an α of 1: PEFT itself would multiply in float32.
    """
    keep_layout(model)
    count = settings.num_experts
    sizes = {"r": count * settings.rank, "lora_alpha": count * settings.alpha, "lora_dropout": settings.dropout or 0.0}
    common: dict[str, Any] = {**sizes, "target_modules": target_modules(model), "task_type": "CAUSAL_LM"}
    routed: dict[str, Any] = {"num_experts": count, "router": settings.router.model_dump()}
    config = LoraConfig(**common) if count == 1 else RoutedLoraConfig(**routed, **common)
    with warnings.catch_warnings():  # PEFT reads an attribute that transformers has deprecated
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        adapted: PeftModel = get_peft_model(model, config)
    if count == 1 and model.get_input_embeddings().weight.dtype != torch.float32:  # type: ignore[operator]
        routing = Routing(settings.rank, settings.alpha / settings.rank)
        routing.keep(torch.ones(1, 1))
        _apply(adapted, ADAPTER, routing)
    return adapted


def _apply(model: nn.Module, adapter_name: str, routing: Routing) -> None:
    """Let every LoRA layer of ``model`` compute :func:`routed_lora`."""
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if (kind := type(layer).__name__) not in _ROUTABLE:
            hint = "load the LLM in 4 bits (--load-in-4bit) or unquantised"
            raise StudyError(f"experts cannot sit on a {kind}", where=name, hint=hint)
        layer.lora_variant[adapter_name] = _RoutedVariant(routing)
        layer.cast_input_dtype_enabled = False


@dataclass
class RoutedLoraConfig(LoraConfig):  # type: ignore[misc] # PEFT is untyped
    """PEFT's settings of the experts: ``r`` is P·r, ``lora_alpha`` P·a; ``router`` holds :class:`RouterSettings`."""

    num_experts: int = 1
    router: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take the type's own name, which PEFT's enumeration lacks."""
        super().__post_init__()
        self.peft_type = _PEFT_TYPE


class RoutedLoraModel(LoraModel):  # type: ignore[misc]
    """LoRA layers that share one router and one α."""

    def _pre_injection_hook(self, model: nn.Module, config: RoutedLoraConfig, adapter_name: str) -> None:
        self.routing = Routing(config.r // config.num_experts, config.lora_alpha / config.r)
        width = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        router = Router(width, config.num_experts, RouterSettings.model_validate(config.router))
        self.router = nn.ModuleDict({adapter_name: router.requires_grad_(not config.inference_mode)})

    def _post_injection_hook(self, model: nn.Module, config: RoutedLoraConfig, adapter_name: str) -> None:
        _apply(model, adapter_name, self.routing)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f".{adapter_name}.", ".", 1)

    def equal_weights(self, rows: int) -> Float[Tensor, "row expert"]:
        """Return an α that mixes all experts equally, where the LLM takes its inputs."""
        count, device = self.peft_config[ADAPTER].num_experts, self.model.get_input_embeddings().weight.device
        return torch.full((rows, count), 1 / count, device=device)

    @torch.no_grad()
    def flattens_batch(self) -> bool:
        """Return whether layers with experts see examples and tokens on one axis, so that a batch can have but one α.

        The LLM reads two examples of a token, each with an α of its own; call it in eval mode.
        """
        alpha = self.equal_weights(2)
        try:
            with self.routing.using(alpha):
                self.model(input_ids=torch.arange(2, device=alpha.device).unsqueeze(1), use_cache=False)
        except RunError:
            return True
        return False


PEFT_TYPE_TO_CONFIG_MAPPING[_PEFT_TYPE] = RoutedLoraConfig
PEFT_TYPE_TO_TUNER_MAPPING[_PEFT_TYPE] = RoutedLoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[_PEFT_TYPE] = RoutedLoraModel.prefix


class Routing:
    """Holds α for the experts of all layers, of rank r and with the scaling a/r."""

    def __init__(self, rank: int, scaling: float) -> None:
        self._rank, self._scaling = rank, scaling
        self._scales: Float[Tensor, "batch middle"] | None = None

    def keep(self, alpha: Float[Tensor, "batch expert"]) -> None:
        """Scale the experts by ``alpha`` wherever no block says otherwise."""
        self._scales = alpha.repeat_interleave(self._rank, dim=-1) * self._scaling

    @contextmanager
    def using(self, alpha: Float[Tensor, "batch expert"]) -> Iterator[None]:
        """Scale the experts by ``alpha`` inside the block; one row serves a whole batch.

        Keep the block open through the backward pass: gradient checkpointing runs the layers again there.
        """
        if len(alpha) > 1 and alpha.stride(0) == 0:  # one row, expanded
            alpha = alpha[:1]
        before = self._scales
        self.keep(alpha)
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


class _RoutedVariant(LoraVariant):  # type: ignore[misc]
    """Applies the experts of one layer; held by PEFT's LoRA layer, which would else compute a plain LoRA."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    def supports_lora_conversion(self) -> bool:
        """A routed layer is no plain LoRA."""
        return False

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: object) -> Tensor:
        """Add the experts' output to the frozen layer's ``result``, in its dtype; A and B keep their own."""
        down, up = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        scales, dropout = self._routing.scales.to(x.device), module.lora_dropout[active_adapter]
        if dropout.training and isinstance(dropout, nn.Dropout) and x.device.type == "cpu" and x.dtype != torch.float32:
            x, kept = thinned(x, dropout.p)
            return routed_lora(x, result, down, up, scales / kept)
        return routed_lora(dropout(x), result, down, up, scales)

    def _refuse(self, *_: object) -> NoReturn:
        what = "experts of several tasks cannot be merged into one weight"
        raise RunError(what, where="adapter", hint="merge those of one task: medfed export RUN --task TASK --merge")

    merge_safe = merge_unsafe = unmerge = _refuse


def thinned(x: Float[Tensor, "*batch width"], share: float) -> tuple[Float[Tensor, "*batch width"], float]:
    """Return ``x`` with ``share`` of its numbers zeroed at random, and the share that was kept; nothing is rescaled.

    A byte decides over a number, so ``share`` is rounded to 1/256. On a CPU this takes a third of the time of PyTorch's
    dropout, which was a tenth of a step through an LLM in bfloat16.
    """
    threshold = round(256 * share)
    drawn = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None).view(torch.uint8)
    return x * (drawn[: x.numel()].view(x.shape) >= threshold), 1 - threshold / 256


def save_experts(adapted: PeftModel, folder: Path, base: str, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapter, router included, in PEFT's layout; ``base`` names its LLM.

    ``state`` holds the weights by their names in ``adapted``, where those there are sharded.
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

    Raises RunError if the adapter lacks a tensor that this model expects, has one too many, or changes nothing.
    """
    keep_layout(model)
    adapted = PeftModel.from_pretrained(model, str(folder))
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt") as file:
        given = set(file.keys())
    if wrong := sorted(expected ^ given):
        side = "is missing" if wrong[0] in expected else "does not belong to this LLM"
        raise RunError(f"{side} ({len(wrong)} such)", where=f"tensor {wrong[0]!r}", hint="use the LLM it was made for")
    if not _changes_logits(adapted):
        what = "the adapter changes no logit of the LLM: its B is zero, or it was made for another one"
        raise RunError(what, where=folder, hint="use the adapter of a run that has trained its experts")
    return adapted


@torch.no_grad()
def _changes_logits(adapted: PeftModel) -> bool:
    """Return whether the adapter changes the logits of a few tokens, its experts mixed equally."""
    table, tuner = adapted.get_input_embeddings().weight, adapted.base_model
    ids = torch.arange(min(4, len(table)), device=table.device).unsqueeze(0)
    with tuner.routing.using(tuner.equal_weights(1)) if isinstance(tuner, RoutedLoraModel) else nullcontext():
        with_adapter = tuner.model(input_ids=ids, use_cache=False).logits
    with adapted.disable_adapter():
        without = tuner.model(input_ids=ids, use_cache=False).logits
    return not torch.equal(with_adapter, without)


def routed_lora(
    x: Float[Tensor, "*batch in"],
    result: Float[Tensor, "*batch out"],
    down: Float[Tensor, "middle in"],
    up: Float[Tensor, "out middle"],
    scales: Float[Tensor, "example middle"],
) -> Float[Tensor, "*batch out"]:
    """Return ``result + (scales ∘ (x Aᵀ)) Bᵀ``, as one function with its own gradient (FedKIM Eq. 5).

    Automatic differentiation would keep the middle activations twice, plain and scaled, and copies of A and B wherever
    their dtype is not the LLM's. This function keeps as much as a plain LoRA of the same rank: input and middle
    activations. Everything is computed in the dtype of ``result``; a gradient has the dtype of its tensor.

    ``x`` is the layer's input after dropout; ``down`` and ``up`` are A and B of all experts. ``scales`` are α·a/r of
    every direction, in one row for all of ``x``, or a row for each of its first axis. ``result`` is the output of the
    frozen layer, which must not need it for its own gradient. It is overwritten by the sum unless it is a view, a leaf
    that takes a gradient, or not contiguous.
    Raises RunError if ``scales`` has several rows, and the first axis of ``x`` is not that of the examples.
    """
    if len(scales) > 1 and (x.dim() < 3 or len(x) != len(scales)):
        what = f"{len(scales)} rows of α do not fit an input of shape {list(x.shape)}"
        hint = "layers that flatten examples and tokens (mixtures of experts) take one task per batch"
        raise RunError(what, where="experts", hint=hint)
    kind = x.device.type
    available = torch.amp.is_autocast_available(kind)  # not for shapes alone, on "meta"
    with torch.autocast(kind, enabled=False) if available else nullcontext():
        return cast(Tensor, _RoutedLora.apply(x, result, down, up, scales))  # type: ignore[no-untyped-call]


class _RoutedLora(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, result: Tensor, down: Tensor, up: Tensor, scales: Tensor) -> Tensor:
        dtype = result.dtype
        middle = x.to(dtype) @ down.to(dtype).T
        ctx.save_for_backward(x, middle, down, up, scales)
        scaled = _flat(_scaled(middle, scales))
        if result.is_contiguous() and not (result._is_view() or (result.is_leaf and result.requires_grad)):
            ctx.mark_dirty(result)
            _flat(result).addmm_(scaled, up.to(dtype).T)
            return result
        return torch.addmm(_flat(result), scaled, up.to(dtype).T).view_as(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, middle, down, up, scales = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_x, _, needs_down, needs_up, needs_scales = ctx.needs_input_grad  # type: ignore[attr-defined]
        grad_scaled = grad @ up.to(grad.dtype)
        grad_up = (_flat(grad).T @ _flat(_scaled(middle, scales))).to(up.dtype) if needs_up else None
        grad_scales = _by_example(grad_scaled.to(scales.dtype) * middle, len(scales)) if needs_scales else None
        grad_middle = _scaled(grad_scaled, scales)
        grad_down = (_flat(grad_middle).T @ _flat(x).to(grad.dtype)).to(down.dtype) if needs_down else None
        grad_x = (grad_middle @ down.to(grad.dtype)).to(x.dtype) if needs_x else None
        return grad_x, grad, grad_down, grad_up, grad_scales


def _scaled(
    middle: Float[Tensor, "*batch middle"], scales: Float[Tensor, "example middle"]
) -> Float[Tensor, "*batch middle"]:
    return middle * scales.to(middle.dtype).view(len(scales), *(1 for _ in middle.shape[1:-1]), scales.shape[-1])


def _by_example(values: Float[Tensor, "*batch middle"], count: int) -> Float[Tensor, "example middle"]:
    """Return sums over tokens: for each example, or over all of them where ``count`` is 1."""
    return values.reshape(count, -1, values.shape[-1]).sum(1)


def _flat(values: Float[Tensor, "*batch width"]) -> Float[Tensor, "row width"]:
    return values.flatten(0, -2)
