"""Settings of the server's LLM: which it is, and in what form its weights are held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from medfed.study.parts import SettingsModel

FROM_DISK = frozenset({"device_map", "dtype", "load_in_4bit", "model", "revision", "sha256"})
"""Settings of an LLM from disk that a tiny one has not."""


class HuggingFaceSettings(SettingsModel):
    """A causal LM from disk.

    Attributes:
        model: a name of `medfed foundation list`, in medfed's cache; or its name on the Hub, in Hugging Face's.
        revision: commit or tag in that cache.
        sha256: what `medfed foundation FOLDER` prints; another LLM is then refused.
        dtype: of the frozen weights; projectors, router and experts stay float32.
        load_in_4bit: hold the linear maps in 4-bit NF4 and compute in bfloat16 (bitsandbytes).
        device_map: where transformers puts the weights: "auto", or a device such as "cuda:0"; null loads on the CPU
            and moves to ``injection.device``.
    """

    kind: Literal["huggingface"] = "huggingface"
    model: str | None = None
    revision: str | None = None
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    load_in_4bit: bool = False
    device_map: str | None = None

    @property
    def placed(self) -> bool:
        """Whether transformers puts the weights where they stay."""
        return self.load_in_4bit or self.device_map is not None


class TinySettings(SettingsModel):
    """A small Llama, pre-trained on the spot.

    Attributes:
        vocab_size: of the byte-pair tokenizer.
        width: hidden size.
        num_layers: decoder layers.
        num_heads: attention heads.
        num_steps: optimizer steps; 600 take about 20 s on one core.
        batch_size: texts per step.
        max_length: tokens per text; longer ones are cut into pieces.
        lr: peak learning rate of AdamW, warmed up and decayed by a cosine.
        case_share: share of cases among the texts.
        open_share: share of open ones among the cases.
        answer_weight: weight of the mean loss of the answers' tokens, next to the mean loss of all.
        seed: of weights, texts and order.
    """

    kind: Literal["tiny"] = "tiny"
    vocab_size: int = Field(default=1500, ge=300)
    width: int = Field(default=128, gt=0)
    num_layers: int = Field(default=4, gt=0)
    num_heads: int = Field(default=4, gt=0)
    num_steps: int = Field(default=600, gt=0)
    batch_size: int = Field(default=8, gt=0)
    max_length: int = Field(default=96, ge=16)
    lr: float = Field(default=4e-3, gt=0)
    case_share: float = Field(default=0.8, ge=0, le=1)
    open_share: float = Field(default=0.65, ge=0, le=1)
    answer_weight: float = Field(default=3.0, ge=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _nothing_of_an_llm_from_disk(cls, given: object) -> object:
        known = given if isinstance(given, Mapping) else {}
        if wrong := sorted(FROM_DISK & known.keys()):
            raise ValueError(
                f"{wrong[0]!r} is a setting of an LLM from disk, and the study's LLM is 'tiny'."
                "\n  next step: leave it out, or add --set foundation.kind=huggingface --foundation FOLDER"
            )
        return given

    @model_validator(mode="after")
    def _heads_divide(self) -> TinySettings:
        if self.width % (2 * self.num_heads):
            raise ValueError(f"width={self.width} must be a multiple of 2·num_heads={2 * self.num_heads}")
        return self


FoundationSettings = TinySettings | HuggingFaceSettings
"""They differ by ``kind``."""
