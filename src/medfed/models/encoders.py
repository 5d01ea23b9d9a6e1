"""The encoders: images, signals, hourly series, texts and laboratory values become tokens (FedKIM Table 8).

Their settings, sizes and presets are in :mod:`medfed.study.encoders`. Weights start from the run's seed.

Deviation: FedKIM and Med-MMFL start from weights pre-trained on ImageNet, BERT from pre-trained ones with a vocabulary
    of its own; here no file is needed.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.modalities.text import NUM_WORDS
from medfed.models.base import Encoder
from medfed.study import encoders as specs


class VisionTransformer(Encoder):
    """A ViT on grey images (Dosovitskiy et al. 2021); DeiT-tiny without distillation is one (Touvron et al. 2021).

    DeiT-tiny has width 192, 12 layers, 3 heads, and 16-pixel patches of a 224-pixel image. The released FedKIM feeds
    its LLM from this encoder.

    Deviation: by default the patch grid is averaged to ``num_tokens`` cells. This keeps the LLM's prefix short and says
        where in the image a finding is. ``tokens="cls"`` is the classification token alone, ``tokens="all"`` that token
        and every patch.
    """

    def __init__(self, spec: specs.VisionTransformerSpec) -> None:
        from transformers import ViTConfig, ViTModel  # noqa: PLC0415 (large; loaded where it is used)

        super().__init__()
        self.dim, self.spec = spec.dim, spec
        config = ViTConfig(
            hidden_size=spec.dim,
            num_hidden_layers=spec.num_layers,
            num_attention_heads=spec.num_heads,
            intermediate_size=spec.mlp_ratio * spec.dim,
            image_size=spec.size,
            patch_size=spec.patch_size,
            num_channels=spec.channels,
            hidden_dropout_prob=spec.dropout,
            initializer_range=spec.init_std,
            attn_implementation="sdpa",
        )
        self.vit: nn.Module = ViTModel(config, add_pooling_layer=False)

    def forward(self, samples: Float[Tensor, "batch 1 row column"]) -> Float[Tensor, "batch tokens dim"]:
        """Encode normalised grey images."""
        hidden: Tensor = self.vit(samples.expand(-1, self.spec.channels, -1, -1)).last_hidden_state
        if self.spec.tokens == "all":
            return hidden
        if self.spec.tokens == "cls":
            return hidden[:, :1]
        grid = hidden[:, 1:].transpose(1, 2).reshape(len(hidden), self.dim, self.spec.patches, self.spec.patches)
        return F.adaptive_avg_pool2d(grid, self.spec.cells).flatten(2).transpose(1, 2)


class ResNet(Encoder):
    """A ResNet on grey images (He et al. 2016), in the form that strides in a bottleneck's 3 × 3 convolution.

    ResNet-50 is Med-MMFL's image encoder for MIMIC-CXR. The features of the last stage are averaged to ``num_tokens``
    cells; one cell is the network's own global pooling.

    Deviation: ``resnet-mini`` normalises by group. Hospitals disagree on the running statistics of BatchNorm (Hsieh et
        al. 2020), and there are none to average. ``norm="batch"`` is the usual one, ResNet-50's default.
    """

    def __init__(self, spec: specs.ResNetSpec) -> None:
        from transformers import ResNetConfig, ResNetModel  # noqa: PLC0415 (large; loaded where it is used)

        super().__init__()
        self.dim, self.channels, self.cells = spec.dim, spec.channels, math.isqrt(spec.num_tokens)
        config = ResNetConfig(
            num_channels=spec.channels,
            embedding_size=spec.stem,
            hidden_sizes=list(spec.widths),
            depths=list(spec.depths),
            layer_type=spec.block,
        )
        self.resnet: nn.Module = ResNetModel(config)
        if spec.norm == "group":
            _normalise_by_group(self.resnet, spec.num_groups)

    def forward(self, samples: Float[Tensor, "batch 1 row column"]) -> Float[Tensor, "batch tokens dim"]:
        """Encode normalised grey images."""
        features: Tensor = self.resnet(samples.expand(-1, self.channels, -1, -1)).last_hidden_state
        return F.adaptive_avg_pool2d(features, self.cells).flatten(2).transpose(1, 2)


def _normalise_by_group(module: nn.Module, num_groups: int) -> None:
    """Put a GroupNorm in the place of every BatchNorm below ``module``."""
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.BatchNorm2d):
            module.set_submodule(name, nn.GroupNorm(num_groups, part.num_features))


class Conv1d(Encoder):
    """A one-dimensional CNN over the leads of an ECG: blocks of convolution, normalisation and GELU.

    Every block shortens the signal, the width grows to ``dim``. The features of the last block are averaged to
    ``num_tokens`` spans of time. A layer norm makes a token's scale independent of the depth.

    The default normalisation is by group. It keeps no running statistics, so there is nothing to average between
    hospitals whose recordings differ (Hsieh et al. 2020). ``norm="batch"`` is the usual one, with buffers.
    """

    def __init__(self, spec: specs.Conv1dSpec, num_leads: int) -> None:
        super().__init__()
        self.dim, self.num_tokens = spec.dim, spec.num_tokens
        self.blocks = nn.Sequential(*(_block(spec, *sizes) for sizes in pairwise((num_leads, *spec.widths))))
        self.norm = nn.LayerNorm(spec.dim)

    def forward(self, samples: Float[Tensor, "batch lead time"]) -> Float[Tensor, "batch tokens dim"]:
        """Encode normalised signals."""
        tokens: Tensor = self.norm(F.adaptive_avg_pool1d(self.blocks(samples), self.num_tokens).transpose(1, 2))
        return tokens


def _block(spec: specs.Conv1dSpec, narrow: int, wide: int) -> nn.Sequential:
    norm = nn.GroupNorm(spec.num_groups, wide) if spec.norm == "group" else nn.BatchNorm1d(wide)
    conv = nn.Conv1d(narrow, wide, spec.kernel_size, spec.stride, spec.kernel_size // 2, bias=False)
    return nn.Sequential(conv, norm, nn.GELU(), nn.Dropout(spec.dropout))


class TimeTransformer(Encoder):
    """A Transformer over the hours of an intensive-care stay.

    A sample is ``[hour, 2·channel]``: normalised values, then a flag for each measured one. Attention runs over the
    hours of one stay and skips hours without a measurement. A learned *stay* token is always attended to, so a stay
    without any measurement has an encoding as well (and no NaN). Every token that leaves is the mean of the stay token
    and of the measured hours of its span.

    Deviation: the released code lays the patients of a batch along the attention axis; here a patient's encoding
        depends on that patient alone.
    """

    def __init__(self, spec: specs.TransformerSpec, num_hours: int, num_channels: int) -> None:
        super().__init__()
        self.dim, self.num_tokens, self.num_channels = spec.dim, spec.num_tokens, num_channels
        self.embed = nn.Linear(2 * num_channels, spec.dim)
        self.positions = nn.Parameter(0.02 * torch.randn(num_hours, spec.dim))
        self.stay = nn.Parameter(0.02 * torch.randn(spec.dim))
        sizes, norm = (spec.dim, spec.num_heads, spec.mlp_ratio * spec.dim, spec.dropout), nn.LayerNorm(spec.dim)
        layer = nn.TransformerEncoderLayer(*sizes, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, spec.num_layers, norm=norm, enable_nested_tensor=False)

    def forward(self, samples: Float[Tensor, "batch hour values_and_flags"]) -> Float[Tensor, "batch tokens dim"]:
        """Encode normalised stays."""
        measured = samples[:, :, self.num_channels :].amax(2) > 0
        hours = self.embed(samples) + self.positions
        sequence = torch.cat([self.stay.expand(len(samples), 1, -1), hours], 1)
        attended = torch.cat([measured.new_ones(len(samples), 1), measured], 1)
        encoded: Tensor = self.layers(sequence, src_key_padding_mask=~attended)
        kept = measured.reshape(len(samples), self.num_tokens, -1, 1).to(encoded.dtype)
        total = (encoded[:, 1:].reshape(*kept.shape[:3], self.dim) * kept).sum(2)
        return (encoded[:, :1] + total) / (1 + kept.sum(2))


class TextEncoder(Encoder):
    """BERT's architecture over word ids (Devlin et al. 2019): word and position embeddings, transformer blocks.

    Padding is masked, and its tokens are zeros.
    """

    def __init__(self, spec: specs.TextEncoderSpec, num_tokens: int) -> None:
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


class LabsMLP(Encoder):
    """Linear layers with GELU between them and a layer norm at the end: one token (Saporta et al. 2024, appendix)."""

    def __init__(self, spec: specs.LabsMLPSpec, num_values: int) -> None:
        super().__init__()
        self.dim, widths = spec.dim, (num_values, *spec.hidden)
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Linear(narrow, wide), nn.GELU(), nn.Dropout(spec.dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], spec.dim), nn.LayerNorm(spec.dim))

    def forward(self, samples: Float[Tensor, "batch value"]) -> Float[Tensor, "batch 1 dim"]:
        """Encode percentiles and flags."""
        encoded: Tensor = self.layers(samples)
        return encoded[:, None]
