"""The experts of one task as an ordinary LoRA: α does not depend on the token, so it is folded into B.

Σ_p α_p (a/r) B_p A_p = (B · diag(s)) A with s = α·a/r repeated over each expert's directions: a plain LoRA of rank P·r
with scaling 1, which stock PEFT loads and servers serve.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

from medfed.errors import RunError
from medfed.injection.experts import ADAPTER, order_config
from medfed.injection.injected import InjectedModel
from medfed.injection.lowrank import Factors
from medfed.tasks.base import Task


@torch.no_grad()
def folded(injected: InjectedModel, task: Task) -> dict[str, Factors]:
    """Return the update of every adapted layer for ``task``, trained or not, by the layer's name in the LLM.

    Raises:
        RunError: the LLM has no experts.
    """
    if injected.adapted is None:
        raise RunError("there is no adapter: the LLM has no experts (num_experts = 0)", hint="export without one")
    settings = injected.settings
    alpha: Float[Tensor, " expert"] = injected.alpha([task])[0]
    scales = alpha.repeat_interleave(settings.rank) * (settings.alpha / settings.rank)
    return {
        name: Factors(
            layer.lora_A[ADAPTER].weight.detach().cpu().float().clone(),
            (layer.lora_B[ADAPTER].weight * scales).detach().cpu().float().contiguous(),
        )
        for name, layer in _layers(injected)
    }


def changes_nothing(injected: InjectedModel) -> bool:
    """Whether there are experts whose update of every layer is zero, for all tasks: B starts so."""
    if injected.adapted is None:
        return False
    return not any(bool(layer.lora_B[ADAPTER].weight.any()) for _, layer in _layers(injected))


def _layers(injected: InjectedModel) -> Iterator[tuple[str, LoraLayer]]:
    """Yield every adapted layer with its name in the LLM."""
    for name, layer in injected.llm.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


def save_plain_lora(
    layers: Mapping[str, Factors], folder: Path, like: LoraConfig, base: str, revision: str | None
) -> None:
    """Write ``layers`` as a LoRA directory of PEFT: plain, scaling 1, one rank.

    Args:
        layers: updates by layer name.
        folder: an existing folder.
        like: the settings the experts were trained with; target modules and dropout are taken from them.
        base: name or folder of the LLM they belong to.
        revision: of ``base`` on the Hub.
    """
    rank = len(next(iter(layers.values())).down)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=like.lora_dropout,
        target_modules=like.target_modules,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        revision=revision,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    order_config(folder)
    tensors = {}
    for name, factors in sorted(layers.items()):
        tensors[f"base_model.model.{name}.lora_A.weight"] = factors.down
        tensors[f"base_model.model.{name}.lora_B.weight"] = factors.up
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
