"""Text encoders: a small transformer over word ids for two cores, and BERT's architecture at full size.

Source: Devlin et al. 2019 (BERT). Padding is masked. Weights start at random: pre-trained ones would come with a
vocabulary of their own.
"""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from medfed.errors import StudyError
from medfed.modalities.base import Encoder, EncoderSpec, Modality
from medfed.modalities.text import NUM_WORDS


class TextEncoderSpec(EncoderSpec):
    """Settings of a transformer over words.

    Attributes:
        dim: width.
        depth: blocks.
        num_heads: attention heads; must divide ``dim``.
        mlp_ratio: width of the feed-forward layer in multiples of ``dim``.
        dropout: in every block.
    """

    name: ClassVar[str] = "text-mini"
    dim: int = Field(default=64, gt=0)
    depth: int = Field(default=1, gt=0)
    num_heads: int = Field(default=4, gt=0)
    mlp_ratio: int = Field(default=2, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, modality: Modality) -> Encoder:
        """Return a freshly initialised encoder; raise StudyError for what is not text."""
        if len(modality.sample_shape) != 1:
            raise StudyError(
                f"encoder {self.name!r} reads words, not samples of shape {modality.sample_shape}",
                where=f"modality {modality.name!r}",
                hint="choose another encoder",
            )
        return TextEncoder(self, modality.sample_shape[0])


class BertSpec(TextEncoderSpec):
    """BERT-base: 12 blocks of width 768."""

    name: ClassVar[str] = "bert"
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: int = 4
    dropout: float = 0.1


class TextEncoder(Encoder):
    """Word and position embeddings, transformer blocks; zeros at padding."""

    def __init__(self, spec: TextEncoderSpec, num_tokens: int) -> None:
        from transformers import BertConfig, BertModel  # noqa: PLC0415 (large; loaded where it is used)

        super().__init__()
        self.dim = spec.dim
        config = BertConfig(
            vocab_size=NUM_WORDS,
            hidden_size=spec.dim,
            num_hidden_layers=spec.depth,
            num_attention_heads=spec.num_heads,
            intermediate_size=spec.mlp_ratio * spec.dim,
            max_position_embeddings=num_tokens,
            type_vocab_size=1,
            hidden_dropout_prob=spec.dropout,
            attention_probs_dropout_prob=spec.dropout,
            pad_token_id=0,
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, samples: Float[Tensor, "batch token"]) -> Float[Tensor, "batch tokens dim"]:
        """Encode word ids. The mean over tokens is that over words: a sum weighted by the share of words."""
        ids = samples.long()
        words = ids > 0
        words[:, 0] = True  # an empty text has one padding token, so attention has something to look at
        hidden: Tensor = self.bert(input_ids=ids, attention_mask=words.long()).last_hidden_state
        scale = words.shape[1] / words.sum(1, keepdim=True)
        return hidden * (words * scale).unsqueeze(-1).to(hidden.dtype)


ENCODERS: tuple[type[EncoderSpec], ...] = (TextEncoderSpec, BertSpec)
