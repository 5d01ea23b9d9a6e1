"""A foundation from disk: a causal LM that transformers knows by itself, from safetensors, without remote code.

Its positions are rotary or learned (:mod:`medfed.llm.forward`), its linear maps ``nn.Linear``. ``--foundation FOLDER``
names its folder, or an LLM that `medfed foundation get` brought. Without the flag, ``model`` is such a name, or one in
the local Hugging Face cache. Nothing is downloaded here.
``sha256`` pins the LLM (:mod:`medfed.llm.checkpoints`). 4-bit weights of bitsandbytes are kept as they were loaded.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

from medfed.core.diagnosis import installing
from medfed.core.errors import RunError, StudyError
from medfed.llm.checkpoints import safetensors_in
from medfed.llm.obtain.cached import check_sizes
from medfed.llm.prompt import Turns
from medfed.study.foundation import HuggingFaceSettings

_FETCH = (
    "fetch it with `hf download MODEL --local-dir FOLDER` and pass --foundation FOLDER; "
    "or `medfed foundation get NAME` and pass --foundation NAME (medfed foundation list)"
)

_REPACKING = "support_avx512bf16_for_cpu"
"""A layer's switch: on some CPUs bitsandbytes packs its weight anew at the first evaluation, with rounded scales."""


class HubTokenizer:
    """A transformers tokenizer as a prompt and a conversation need it.

    Attributes:
        starts: the ids that it puts before a text by itself.
        eos: its end-of-text token.
        ends: all tokens that end an answer, those of the LLM's generation settings too.
        has_template: whether it has a chat template.

    Args:
        tokenizer: as transformers loads it.
        ends: end tokens of the LLM's generation settings.
    """

    def __init__(self, tokenizer: Any, ends: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self.starts = _starts(tokenizer)
        self.eos: int | None = tokenizer.eos_token_id
        self.ends = frozenset(ends) | ({self.eos} if self.eos is not None else set())
        self.has_template = bool(tokenizer.chat_template)

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``."""
        return str(self._tokenizer.decode(list(ids)))

    def turns(self, system: str | None = None) -> Turns:
        """Return the ids around a user's turn and behind the answer, as the template writes them."""
        roles = [] if system is None else [{"role": "system", "content": system}]
        messages = [*roles, {"role": "user", "content": _MARK}]
        written = partial(self._tokenizer.apply_chat_template, tokenize=False)
        opening, _, between = written(messages, add_generation_prompt=True).partition(_MARK)
        behind = written([*messages, {"role": "assistant", "content": _ANSWER_MARK}]).partition(_ANSWER_MARK)[2]
        end = next((token for token in self.encode(behind) if token in self.ends), self.eos)
        return Turns(tuple(self.encode(opening)), tuple(self.encode(between)), () if end is None else (end,))


_MARK, _ANSWER_MARK = "user-text", "answer-text"
"""Stand in for texts in a rendered template."""


def _starts(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids before a text that the tokenizer adds by itself; many have a start token and do not add it."""
    whole, plain = (list(tokenizer.encode("x", add_special_tokens=added)) for added in (True, False))
    return tuple(whole[: next(n for n in range(len(whole)) if whole[n : n + len(plain)] == plain)])


def _end_tokens(model: nn.Module) -> list[int]:
    """Return the end tokens of the generation settings, which may be one, several or none."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


class Loaded(NamedTuple):
    """A causal LM, its tokenizer, and the folder they came from."""

    model: nn.Module
    tokenizer: HubTokenizer
    folder: Path


def load_language_model(settings: HuggingFaceSettings, path: Path | None) -> Loaded:
    """Load model and tokenizer from the folder ``path``, or from the local Hugging Face cache.

    A dtype that is still ``auto`` is that of the files. Raises StudyError for nothing to load, no safetensors, or code
    of the model's own. It is raised also for a weight that is missing, not the model's, or no finite number.
    """
    disable_progress_bar()  # medfed has its own
    for noisy in (
        "modeling_utils",
        "distributed.tensor_parallel",
    ):  # a table of what is an error here; layers not split
        logging.getLogger(f"transformers.{noisy}").setLevel(logging.ERROR)
    folder = locate(settings, path)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
        # a tensor of another shape is in the report, which has a name for it; transformers' error has none
        options |= {"dtype": dtype, "use_safetensors": True, "ignore_mismatched_sizes": True, **_placing(settings)}
        model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, ValueError) as error:
        hint = f"use a native causal LM; {_FETCH}"
        raise StudyError(f"cannot load the LLM: {_first_line(error)}", where=folder, hint=hint) from error
    _keep_whole(model, folder)
    _check_weights(model, report, folder)
    return Loaded(model, HubTokenizer(tokenizer, _end_tokens(model)), folder)


def locate(settings: HuggingFaceSettings, path: Path | None) -> Path:
    """Return the folder of the LLM, ``path`` or in the local cache.

    Raises StudyError for none, no safetensors, or files that are gone or were added since it was converted.
    """
    if path is None:
        if settings.model is None:
            raise StudyError("no LLM is named", where="foundation.model", hint=_FETCH)
        try:
            path = Path(snapshot_download(settings.model, revision=settings.revision, local_files_only=True))
        except (OSError, ValueError) as error:
            what = f"cannot load the LLM from the local cache: {_first_line(error)}"
            raise StudyError(what, where=settings.model, hint=_FETCH) from error
    if not (path / "config.json").is_file():
        raise StudyError("not the folder of a causal LM: it has no config.json", where=path, hint=_FETCH)
    safetensors_in(path)
    check_sizes(path)
    return path


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _placing(settings: HuggingFaceSettings) -> dict[str, Any]:
    """Return how transformers quantises and places the weights."""
    if not settings.placed:
        return {}
    needed = ("accelerate", "bitsandbytes") if settings.load_in_4bit else ("accelerate",)
    if missing := [name for name in needed if find_spec(name) is None]:
        where = f"foundation.{'load_in_4bit' if settings.load_in_4bit else 'device_map'}"
        what, hint = f"it needs {missing[0]}, which is not installed", f"{installing('quantised')}, or leave it out"
        raise StudyError(what, where=where, hint=hint)
    placing = {"device_map": settings.device_map or ("cuda:0" if torch.cuda.is_available() else "cpu")}
    if not settings.load_in_4bit:
        return placing
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return placing | {"quantization_config": four}


def _keep_whole(model: nn.Module, folder: Path) -> None:
    """Make sure that all weights are in memory, and that the first use of 4-bit ones leaves them as they are.

    bitsandbytes changes a layer at its first use: it casts the bias to the dtype of its products, and on some CPUs
    repacks the weight. The cast happens here at once, repacking is switched off. Else the foundation's fingerprint
    would change.
    """
    if any(value.is_meta for value in model.parameters()):
        what = "the LLM does not fit: the device map leaves weights on disk or moves them to and fro"
        hint = "give --load-in-4bit, a smaller --dtype, or a machine with more memory"
        raise StudyError(what, where=folder, hint=hint)
    keep_layout(model)
    for module in model.modules():
        if hasattr(module, _REPACKING) and isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data = module.bias.data.to(torch.bfloat16)


def _check_weights(model: nn.Module, report: Mapping[str, Collection[Any]], folder: Path) -> None:
    """Raise StudyError unless the files held every weight of ``model``, no other, and finite numbers alone.

    ``report`` is transformers': of tied layers it misses none. Each tensor is read once and not copied.
    """
    hint = "fetch or convert the LLM again: these files are not whole, or not of this model"
    problems = {
        "is missing": sorted(report["missing_keys"]),
        "belongs to no layer": sorted(report["unexpected_keys"]),
        "has another shape": sorted(str(key[0]) for key in report["mismatched_keys"]),
    }
    for what, names in problems.items():
        if names:
            more = f", and {len(names) - 1} more" if len(names) > 1 else ""
            raise StudyError(f"a weight of the LLM {what}: {names[0]}{more}", where=folder, hint=hint)
    for name, given in chain(model.named_parameters(), model.named_buffers()):
        value = given.quant_state.absmax if hasattr(given, "quant_state") else given.detach()
        if value.is_floating_point() and value.numel() and not all(map(math.isfinite, value.aminmax())):
            raise StudyError(f"a weight of the LLM is not a finite number: {name}", where=folder, hint=hint)


def keep_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from packing weights anew: packed ones differ, and no gradient passes them."""
    for module in model.modules():
        if hasattr(module, _REPACKING):
            setattr(module, _REPACKING, False)


def refuse_quantised(layer: nn.Module) -> None:
    """Raise RunError if the weight of ``layer`` is quantised: the rounded sum with an update would lose most of it."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or hasattr(weight, "quant_state"):
        what = f"an adapter cannot be merged into a quantised weight ({type(weight).__name__})"
        hint = "serve adapter and LLM apart (export without --merge), or load the LLM unquantised"
        raise RunError(what, where=type(layer).__name__, hint=hint)
