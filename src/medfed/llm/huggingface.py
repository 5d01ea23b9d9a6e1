"""A foundation from disk: a causal LM that transformers knows by itself, from safetensors, without remote code.

Its positions are rotary or learned (:mod:`medfed.llm.masks`), its linear maps ``nn.Linear``.

``--foundation FOLDER`` names its folder. Without the flag, ``model`` is looked up in the local Hugging Face cache;
nothing is ever downloaded. ``sha256`` pins what is loaded (:mod:`medfed.llm.checkpoints`).

4-bit weights of bitsandbytes: kept as they were loaded, and never merged into.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

from medfed.core.diagnosis import installing
from medfed.core.errors import RunError, StudyError
from medfed.llm.checkpoints import check_foundation, safetensors_in
from medfed.study.foundation import HuggingFaceSettings

SPREAD = frozenset({"auto", "balanced", "balanced_low_0", "sequential"})
"""Device maps that divide the weights among all accelerators."""
FETCH = "fetch it with `hf download MODEL --local-dir FOLDER` and pass --foundation FOLDER"


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


class Loaded(NamedTuple):
    """A causal LM, its tokenizer, and the folder they came from."""

    model: nn.Module
    tokenizer: HubTokenizer
    folder: Path


def load_language_model(settings: HuggingFaceSettings, path: Path | None) -> Loaded:
    """Load model and tokenizer from the folder ``path``, or from the local Hugging Face cache.

    Raises:
        StudyError: nothing to load, not what the study pins, no safetensors, or a model that needs code of its own.
    """
    disable_progress_bar()  # medfed shows its own
    folder = locate(settings, path)
    if settings.sha256 is not None:
        check_foundation(folder, settings.sha256)
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, settings.dtype), use_safetensors=True, **_placing(settings), **options
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise StudyError(
            f"cannot load the LLM: {reason}", where=folder, hint=f"use a native causal LM; {FETCH}"
        ) from error
    return Loaded(_whole(model, folder), HubTokenizer(tokenizer), folder)


def locate(settings: HuggingFaceSettings, path: Path | None) -> Path:
    """Return the folder of the LLM, which is ``path`` or in the local Hugging Face cache.

    Raises:
        StudyError: there is none, or it holds no safetensors.
    """
    if path is None:
        if settings.model is None:
            raise StudyError("no LLM is named", where="foundation.model", hint=FETCH)
        path = _cached(settings.model, settings.revision)
    if not (path / "config.json").is_file():
        raise StudyError("not the folder of a causal LM: it has no config.json", where=path, hint=FETCH)
    safetensors_in(path)
    return path


def _cached(model: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise StudyError(f"cannot load the LLM from the local cache: {reason}", where=model, hint=FETCH) from error


def _placing(settings: HuggingFaceSettings) -> dict[str, Any]:
    """Return how transformers quantises and places the weights."""
    if not settings.placed:
        return {}
    needed = ("accelerate", "bitsandbytes") if settings.load_in_4bit else ("accelerate",)
    if missing := [name for name in needed if find_spec(name) is None]:
        field = "load_in_4bit" if settings.load_in_4bit else "device_map"
        raise StudyError(
            f"it needs {missing[0]}, which is not installed",
            where=f"foundation.{field}",
            hint=f"{installing('quantised')}, or leave it out",
        )
    placing: dict[str, Any] = {"device_map": settings.device_map or _accelerator()}
    if settings.load_in_4bit:
        placing["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    return placing


def _accelerator() -> str:
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _whole(model: nn.Module, folder: Path) -> nn.Module:
    """Make sure that all weights are in memory, and that using 4-bit ones leaves them as they are.

    bitsandbytes changes a layer the first time it is used: it casts the bias to the dtype it computes in, and on some
    CPUs repacks the weight, with rounded scales. The first is done here at once, the second is switched off; else the
    foundation would not be the one that was loaded.
    """
    if any(value.is_meta for value in model.parameters()):
        raise StudyError(
            "the LLM does not fit: the device map leaves weights on disk or moves them to and fro",
            where=folder,
            hint="give --load-in-4bit, a smaller --dtype, or a machine with more memory",
        )
    keep_layout(model)
    for module in model.modules():
        if hasattr(module, REPACKING) and isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data = module.bias.data.to(torch.bfloat16)
    return model


REPACKING = "support_avx512bf16_for_cpu"
"""A layer's switch: on some CPUs bitsandbytes packs its weight anew at the first evaluation, with rounded scales."""


def keep_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from packing weights anew: they would be others then, and no gradient passes them."""
    for module in model.modules():
        if hasattr(module, REPACKING):
            setattr(module, REPACKING, False)


def refuse_quantised(layer: nn.Module) -> None:
    """Make sure that the weight of a linear ``layer`` can be added to: rounding the sum would lose most of the update.

    Raises:
        RunError: it is quantised.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or hasattr(weight, "quant_state"):
        raise RunError(
            f"an adapter cannot be merged into a quantised weight ({type(weight).__name__})",
            where=type(layer).__name__,
            hint="serve the adapter beside the LLM (export without --merge), or load the LLM unquantised",
        )
