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
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraLayer, LoraModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor, nn

from medfed.errors import RunError, StudyError
from medfed.injection.quantised import keep_layout
from medfed.injection.router import Router, RouterSettings
from medfed.injection.routing import RoutedVariant, Routing
from medfed.injection.targets import target_modules

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
