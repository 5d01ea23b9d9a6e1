"""``dtype = "auto"``: the dtype of the LLM's frozen weights, by a short trial of multiplications of its own widths.

Processors differ: bfloat16 is 2.3 times as fast as float32 with avx512_bf16, and five times slower on a CPU without.
The answer is kept in the cache by processor and widths, so that a run that goes on keeps its dtype.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch.nn import functional as F
from transformers import AutoConfig

from medfed.core.diagnosis import processor
from medfed.core.errors import StudyError
from medfed.core.files import write_whole
from medfed.core.torch_rng import one_thread
from medfed.study.foundation import HuggingFaceSettings

_FLOPS = 1e10
"""A multiplication of the trial takes about this much: a tenth of a second on one core, a second where it is slow."""
_REPEATS, _MOST_TOKENS = 3, 256
_FASTER = 0.9
"""bfloat16 must take less than this share of float32's time: else the finer numbers are the better choice."""


class Precision(BaseModel):
    """The dtype that was chosen, and what the trial took.

    Attributes:
        dtype: of the frozen weights.
        seconds: dtype → shortest time of the trial's multiplications, forward and backward.
        processor: the CPU, of which one core worked, or the GPU.
        widths: hidden and inner size of the LLM's layers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Literal["float32", "bfloat16"]
    seconds: dict[str, float]
    processor: str
    widths: tuple[int, int]


def chosen(folder: Path, cache: Path, device: str = "cpu") -> Precision:
    """Return the dtype for the LLM in ``folder`` on ``device``: the one that ``cache`` has, or that of a trial now.

    Raises StudyError if transformers does not know the LLM's kind.
    """
    gpu = torch.cuda.is_available() and "cuda" in device
    widths = _widths(folder)
    name = torch.cuda.get_device_name(device) if gpu else processor()
    key = hashlib.sha256(json.dumps([name, widths]).encode()).hexdigest()[:16]
    path = cache / "precision" / f"{key}.json"
    with contextlib.suppress(OSError, ValidationError):
        return Precision.model_validate_json(path.read_bytes())
    seconds = _seconds(*widths, device if gpu else "cpu")
    faster = seconds["bfloat16"] < _FASTER * seconds["float32"]
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if faster else "float32"
    made = Precision(dtype=dtype, seconds=seconds, processor=name, widths=widths)
    write_whole(path, made.model_dump_json(indent=1) + "\n")
    return made


def decided(settings: HuggingFaceSettings, folder: Path, cache: Path, device: str = "cpu") -> HuggingFaceSettings:
    """Return ``settings`` with a dtype instead of ``auto``; what 4-bit weights leave over is bfloat16."""
    if settings.dtype != "auto":
        return settings
    dtype = "bfloat16" if settings.load_in_4bit else chosen(folder, cache, device).dtype
    return settings.model_copy(update={"dtype": dtype})


def _widths(folder: Path) -> tuple[int, int]:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise StudyError(f"cannot load the LLM: {reason}", where=folder, hint="use a native causal LM") from error
    width = int(config.hidden_size)
    return width, int(getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * width)


@one_thread()
@torch.no_grad()
def _seconds(width: int, inner: int, device: str) -> dict[str, float]:
    """Return dtype → shortest seconds of one linear map forward and of the gradient of its input, tried in turn."""
    tokens = max(16, min(_MOST_TOKENS, int(_FLOPS / (4 * width * inner))))
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    made = {
        name: (torch.ones(tokens, width, dtype=dtype, device=device), torch.ones(inner, width, dtype=dtype).to(device))
        for name, dtype in dtypes.items()
    }
    shortest = dict.fromkeys(dtypes, float("inf"))
    clock = time.process_time if device == "cpu" else time.perf_counter  # a busy machine counts for neither
    for _ in range(1 + _REPEATS):
        for name, (inputs, weight) in made.items():
            start = clock()
            (F.linear(inputs, weight) @ weight)[0, 0].item()  # waits for a GPU
            shortest[name] = min(shortest[name], clock() - start)
    return shortest
