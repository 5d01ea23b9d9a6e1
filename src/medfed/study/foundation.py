"""Settings of the server's LLM: which it is, and in what form its weights are held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from medfed.study.parts import SettingsModel

FROM_DISK = frozenset({"device_map", "dtype", "load_in_4bit", "model", "revision", "sha256"})
"""Settings of an LLM from disk that a tiny one has not."""


class HuggingFaceSettings(SettingsModel):
    """A causal LM from disk."""

    kind: Literal["huggingface"] = "huggingface"
    # a name of `medfed foundation list`, in medfed's cache; or its name on the Hub, in Hugging Face's
    model: str | None = None
    revision: str | None = None  # commit or tag in that cache
    # what `medfed foundation FOLDER` prints; another LLM is then refused
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = None
    # of the frozen weights; all else stays float32. `auto` takes bfloat16 where a short trial finds it faster, else
    # float32; a run's study.json has the dtype that was chosen
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    load_in_4bit: bool = False  # hold the linear maps in 4-bit NF4 and compute in bfloat16 (bitsandbytes)
    # where transformers puts the weights: "auto" or a device; null loads on the CPU and moves to `injection.device`
    device_map: str | None = None

    @property
    def placed(self) -> bool:
        """Whether transformers puts the weights where they stay."""
        return self.load_in_4bit or self.device_map is not None


class TinySettings(SettingsModel):
    """A small Llama, pre-trained on the spot."""

    kind: Literal["tiny"] = "tiny"
    vocab_size: int = Field(default=1500, ge=300)  # of the byte-pair tokenizer
    width: int = Field(default=128, gt=0)  # hidden size
    num_layers: int = Field(default=4, gt=0)  # decoder layers
    num_heads: int = Field(default=4, gt=0)  # attention heads
    num_steps: int = Field(default=600, gt=0)  # optimizer steps; 600 take about 20 s on one core
    batch_size: int = Field(default=8, gt=0)  # texts per step
    max_length: int = Field(default=96, ge=16)  # tokens per text; longer ones are cut into pieces
    lr: float = Field(default=4e-3, gt=0)  # peak learning rate of AdamW, warmed up and decayed by a cosine
    case_share: float = Field(default=0.8, ge=0, le=1)  # share of cases among the texts
    open_share: float = Field(default=0.65, ge=0, le=1)  # share of open ones among the cases
    answer_weight: float = Field(default=3.0, ge=0)  # of the mean loss of the answers' tokens, next to that of all
    seed: int = Field(default=0, ge=0)  # of weights, texts and order

    @model_validator(mode="before")
    @classmethod
    def _nothing_of_an_llm_from_disk(cls, given: object) -> object:
        if isinstance(given, Mapping) and (wrong := sorted(FROM_DISK & given.keys())):
            hint = "leave it out, or add --set foundation.kind=huggingface --foundation FOLDER"
            what = f"{wrong[0]!r} is a setting of an LLM from disk, and the study's LLM is 'tiny'."
            raise ValueError(f"{what}\n  next step: {hint}")
        return given

    @model_validator(mode="after")
    def _heads_divide(self) -> TinySettings:
        if self.width % (2 * self.num_heads):
            raise ValueError(f"width={self.width} must be a multiple of 2·num_heads={2 * self.num_heads}")
        return self


FoundationSettings = TinySettings | HuggingFaceSettings
"""They differ by ``kind``."""
