"""Experts: P low-rank updates of every attention and MLP projection, mixed by the router (FedKIM Eq. 5).

out = W h + (a/r) Σ_p α_p B_p A_p h. α does not depend on the token, so the sum is one LoRA of rank P·r whose middle
activations are scaled by α: that is how it is computed, never as a loop over experts. ``lora_A`` is ``[P·r, in]`` and
``lora_B`` ``[out, P·r]``, expert p owning rows (columns) p·r to (p+1)·r. B starts at 0, so injection starts as the
identity.

The experts are a PEFT tuner of its own type, with the router as a child that is saved along.

Deviation: the scaling is a/r *per expert* (the released code drops it), so PEFT's ``lora_alpha`` here is P·a.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraLayer, LoraModel
from peft.tuners.lora.layer import LoraVariant
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.errors import RunError, StudyError
from medfed.injection.router import Router, RouterSettings
from medfed.injection.targets import target_modules

PEFT_TYPE = "ROUTED_LORA"
ADAPTER = "default"
HONOURS_VARIANTS = frozenset({"Linear", "Linear8bitLt", "Linear4bit", "GPTQLoraLinear", "HqqLoraLinear"})
"""PEFT's LoRA layers that call a variant's forward; the others would leave α out silently."""


class Routing:
    """Where the experts of all layers find α.

    Keep the block open through the backward pass: gradient checkpointing runs the layers again there.

    Args:
        rank: r, directions per expert.
        scaling: a/r.
    """

    def __init__(self, rank: int, scaling: float) -> None:
        self._rank, self._scaling = rank, scaling
        self._scales: Float[Tensor, "batch middle"] | None = None

    @contextmanager
    def using(self, alpha: Float[Tensor, "batch expert"]) -> Iterator[None]:
        """Scale the experts by ``alpha`` inside the block; one row serves a whole batch."""
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


class RoutedVariant(LoraVariant):  # type: ignore[misc] # PEFT is untyped
    """How one layer applies its experts; held by PEFT's LoRA layer."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    def supports_lora_conversion(self) -> bool:
        """A routed layer is no plain LoRA."""
        return False

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """Add the experts' output to the frozen layer's ``result``, in the dtype of ``x``; the weights stay float32."""
        down, up = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        middle = F.linear(module.lora_dropout[active_adapter](x), down.to(x.dtype))
        scales = self._routing.scales.to(x.dtype).unsqueeze(1)
        return result + F.linear(middle * scales, up.to(x.dtype))

    def merge_safe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return W + scaling Σ α_p B_p A_p for the one α in use."""
        return orig_weight + self._delta(module, active_adapter).to(orig_weight.dtype)

    def merge_unsafe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        """Add the experts to the weight in place."""
        orig_weight.data += self._delta(module, active_adapter).to(orig_weight.dtype)

    def unmerge(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Take the experts out again; the same α must be in use."""
        return orig_weight - self._delta(module, active_adapter).to(orig_weight.dtype)

    def _delta(self, module: LoraLayer, adapter: str) -> Tensor:
        scales = self._routing.scales
        if len(scales) != 1:
            raise RunError(f"{len(scales)} tasks cannot be merged into one weight", where="router", hint="merge one α")
        delta: Tensor = (module.lora_B[adapter].weight * scales) @ module.lora_A[adapter].weight
        return delta


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
        self.routing = Routing(config.r // config.num_experts, config.lora_alpha / config.r)
        width = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        router = Router(width, config.num_experts, RouterSettings.model_validate(config.router))
        self.router = nn.ModuleDict({adapter_name: router.requires_grad_(not config.inference_mode)})

    def _post_injection_hook(self, model: nn.Module, config: RoutedLoraConfig, adapter_name: str) -> None:
        for name, layer in model.named_modules():
            if isinstance(layer, LoraLayer):
                if type(layer).__name__ not in HONOURS_VARIANTS:
                    raise StudyError(
                        f"experts cannot sit on a {type(layer).__name__}", where=name, hint="load the LLM unquantised"
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


def _wrapped(model: nn.Module, config: LoraConfig) -> PeftModel:
    with warnings.catch_warnings():
        # PEFT asks transformers by a name that transformers has deprecated; nobody here can mend that.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, config)


def save_experts(adapted: PeftModel, folder: Path, base: str) -> None:
    """Write the adapter, router included, in PEFT's layout; ``base`` names the LLM it belongs to."""
    adapted.peft_config[ADAPTER].base_model_name_or_path = base
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink()  # an empty form
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"])  # a set, in another order every run
    path.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_experts(model: nn.Module, folder: Path) -> PeftModel:
    """Wrap ``model``, in place, with the adapter that :func:`save_experts` wrote.

    Raises:
        RunError: the adapter lacks a tensor that this model expects, or has one too many.
    """
    adapted = PeftModel.from_pretrained(model, str(folder))
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt") as file:
        found = set(file.keys())
    if wrong := sorted(expected ^ found):
        side = "is missing" if wrong[0] in expected else "does not belong to this LLM"
        raise RunError(f"{side} ({len(wrong)} such)", where=f"tensor {wrong[0]!r}", hint="use the LLM it was made for")
    return adapted
