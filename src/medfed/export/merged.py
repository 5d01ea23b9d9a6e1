"""A whole Hugging Face model with one task's update in its weights: nothing of medfed or PEFT is needed to run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from medfed.core.errors import StudyError
from medfed.export.lowrank import Factors
from medfed.llm.huggingface import refuse_quantised


def save_merged(
    model: nn.Module, layers: Mapping[str, Factors], folder: Path, source: str, revision: str | None
) -> None:
    """Write configuration, weights (safetensors) and tokenizer of ``model`` with ``layers`` added to ``folder``.

    Args:
        model: the frozen LLM; it stays as it is.
        layers: updates by layer name.
        folder: an existing folder.
        source: name on the Hub (in the local cache) or folder that the model was loaded from, for its tokenizer.
        revision: of ``source`` on the Hub; it says nothing of a folder.

    Raises:
        StudyError: it is no model of transformers. RunError: its weights are quantised.
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
        RunError: they are quantised.
    """
    for name in layers:
        refuse_quantised(model.get_submodule(name))
    weights = dict(model.state_dict())
    for name, factors in layers.items():
        frozen = weights[f"{name}.weight"]
        update = (factors.up.double() @ factors.down.double()).to(frozen.device)
        weights[f"{name}.weight"] = (frozen.double() + update).to(frozen.dtype)
    return weights
