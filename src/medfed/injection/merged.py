"""A whole Hugging Face model with one task's update in its weights: nothing of medfed or PEFT is needed to run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from medfed.errors import StudyError
from medfed.injection.lowrank import Factors


def save_merged(
    model: nn.Module, layers: Mapping[str, Factors], folder: Path, source: str, revision: str | None
) -> None:
    """Write configuration, weights (safetensors) and tokenizer of ``model`` with ``layers`` added to ``folder``.

    Args:
        model: the frozen LLM; it stays as it is.
        layers: updates by layer name.
        folder: an existing folder.
        source: name on the Hub (in the local cache) or folder that the tokenizer is read from.
        revision: of ``source`` on the Hub.

    Raises:
        StudyError: the model is quantised, or no model of transformers.
    """
    if not isinstance(model, PreTrainedModel):
        raise StudyError(f"{type(model).__name__} is no model of transformers", where="--merge", hint="leave it out")
    weights = merged_weights(model, layers)
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, local_files_only=True, trust_remote_code=False)
    model.save_pretrained(str(folder), state_dict=weights)
    tokenizer.save_pretrained(str(folder))


@torch.no_grad()
def merged_weights(model: nn.Module, layers: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Return all weights of ``model`` with the updates added, in float64, then rounded once.

    The updated weights are new tensors, so this takes their size once more.

    Raises:
        StudyError: the model is quantised.
    """
    refuse_quantised(model)
    weights = dict(model.state_dict())
    for name, factors in layers.items():
        frozen = weights[f"{name}.weight"]
        update = (factors.up.double() @ factors.down.double()).to(frozen.device)
        weights[f"{name}.weight"] = (frozen.double() + update).to(frozen.dtype)
    return weights


def refuse_quantised(model: nn.Module) -> None:
    """Make sure that the weights can be added to.

    Raises:
        StudyError: they are quantised.
    """
    whole = all(value.is_floating_point() for value in model.parameters())
    if getattr(model, "is_quantized", False) or not whole:
        raise StudyError(
            "the LLM is loaded quantised; adding to such weights loses most of the update",
            where="--merge",
            hint="export without --merge and serve the adapter, or let the study load the LLM unquantised",
        )
