"""A foundation from disk: any causal LM that transformers knows by itself, from safetensors, without remote code.

``--foundation FOLDER`` names its folder. Without the flag, ``model`` is looked up in the local Hugging Face cache;
nothing is ever downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from medfed.errors import StudyError

FETCH = "fetch it with `hf download MODEL --local-dir FOLDER` and pass --foundation FOLDER"


class HuggingFaceSettings(BaseModel):
    """A causal LM from disk.

    Attributes:
        model: its name on the Hub; only looked up in the local cache.
        revision: commit or tag in that cache.
        dtype: of the frozen weights; projectors, router and experts stay float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["huggingface"] = "huggingface"
    model: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"


class HubTokenizer:
    """A transformers tokenizer as a prompt needs it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.bos: int | None = tokenizer.bos_token_id
        self.eos: int | None = tokenizer.eos_token_id

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``."""
        return str(self._tokenizer.decode(list(ids)))


def load_language_model(settings: HuggingFaceSettings, folder: Path | None) -> tuple[nn.Module, HubTokenizer]:
    """Load model and tokenizer.

    Raises:
        StudyError: nothing to load, no safetensors, or a model that needs code of its own.
    """
    disable_progress_bar()  # medfed shows its own
    source = _source(settings, folder)
    options = {"local_files_only": True, "trust_remote_code": False, "revision": settings.revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, settings.dtype), use_safetensors=True, attn_implementation="sdpa", **options
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise StudyError(
            f"cannot load the LLM: {reason}", where=source, hint=f"use a native causal LM; {FETCH}"
        ) from error
    return model, HubTokenizer(tokenizer)


def _source(settings: HuggingFaceSettings, folder: Path | None) -> str:
    if folder is None:
        if settings.model is None:
            raise StudyError("no LLM is named", where="foundation.model", hint=FETCH)
        return settings.model
    if not (folder / "config.json").is_file():
        raise StudyError("not the folder of a causal LM: it has no config.json", where=folder, hint=FETCH)
    if not any(folder.glob("*.safetensors")):
        held = "only pickled weights (*.bin)" if any(folder.glob("*.bin")) else "no weights"
        raise StudyError(
            f"the folder holds {held}; pickles run code when opened, so *.safetensors are needed",
            where=folder,
            hint="use a revision with safetensors, or convert the weights on a machine you can spare",
        )
    return str(folder)
