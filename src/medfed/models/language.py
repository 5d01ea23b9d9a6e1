"""Text encoders: a small transformer over word ids for two cores, and BERT's architecture at full size.

Source: Devlin et al. 2019 (BERT). Padding is masked. Weights start at random: pre-trained ones would come with a
vocabulary of their own.
"""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from medfed.modalities.text import NUM_WORDS
from medfed.models.base import Encoder
from medfed.study.encoders import LabsMLPSpec, TextEncoderSpec


class LabsMLP(Encoder):
    """Linear layers with GELU between them and a layer norm at the end: one token."""

    def __init__(self, spec: LabsMLPSpec, num_values: int) -> None:
        super().__init__()
        self.dim = spec.dim
        layers: list[nn.Module] = []
        for narrow, wide in pairwise((num_values, *spec.hidden)):
            layers += [nn.Linear(narrow, wide), nn.GELU(), nn.Dropout(spec.dropout)]
        inside = spec.hidden[-1] if spec.hidden else num_values
        self.layers = nn.Sequential(*layers, nn.Linear(inside, spec.dim), nn.LayerNorm(spec.dim))

    def forward(self, samples: Float[Tensor, "batch value"]) -> Float[Tensor, "batch 1 dim"]:
        """Encode percentiles and flags."""
        encoded: Tensor = self.layers(samples)
        return encoded[:, None]


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
