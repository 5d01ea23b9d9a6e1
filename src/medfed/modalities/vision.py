"""Image encoders: the Vision Transformer of FedKIM's Table 8 (DeiT-tiny) and a preset of the same code for two cores.

DeiT-tiny (Touvron et al. 2021) without distillation is a plain ViT (Dosovitskiy et al. 2021): width 192, 12 layers, 3
heads, 16-pixel patches of a 224-pixel image. The released FedKIM feeds its LLM from this encoder.

Deviation: FedKIM starts from weights pre-trained on ImageNet; here every encoder starts from its seed, so no file is
    needed.
Deviation: by default the patch grid is averaged to ``num_tokens`` cells, which keeps the LLM's prefix short and says
    where in
the image a finding is; ``tokens="cls"`` is the classification token alone, ``tokens="all"`` that token and every patch.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.errors import StudyError
from medfed.modalities.base import Encoder, EncoderSpec, Modality


class VisionTransformerSpec(EncoderSpec):
    """Settings of a Vision Transformer.

    Attributes:
        dim: width of a token.
        num_layers: transformer blocks.
        num_heads: attention heads; must divide ``dim``.
        mlp_ratio: width of the hidden layer of a block's MLP, in ``dim``.
        patch_size: side of a patch in pixels; must divide ``size``.
        size: side of the image in pixels; must be the modality's.
        channels: the grey image is repeated to this many channels (3 is what pre-trained weights expect).
        tokens: ``grid`` the patch grid averaged to ``num_tokens`` cells; ``cls``; ``all``.
        num_tokens: a square number no larger than the number of patches; only for ``grid``.
        dropout: on embeddings, MLP and residual branches.
        init_std: spread of the initial weights.
    """

    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    mlp_ratio: int = Field(default=4, gt=0)
    patch_size: int = Field(gt=0)
    size: int = Field(gt=0)
    channels: Literal[1, 3] = 3
    tokens: Literal["grid", "cls", "all"] = "grid"
    num_tokens: int = Field(default=4, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    init_std: float = Field(default=0.02, gt=0)

    @model_validator(mode="after")
    def _check_divisions(self) -> VisionTransformerSpec:
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} must divide dim={self.dim}")
        if self.size % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size} must divide size={self.size}")
        if self.tokens == "grid" and (math.isqrt(self.num_tokens) ** 2 != self.num_tokens or self.cells > self.patches):
            raise ValueError(f"num_tokens={self.num_tokens} must be a square number up to {self.patches**2}")
        return self

    @property
    def patches(self) -> int:
        """Patches along a side of the image."""
        return self.size // self.patch_size

    @property
    def cells(self) -> int:
        """Tokens along a side of the image with ``tokens="grid"``."""
        return math.isqrt(self.num_tokens)

    def build(self, modality: Modality) -> Encoder:
        """Return a freshly initialised encoder for grey images ``[1, size, size]``; raise StudyError for others."""
        if modality.sample_shape != (1, self.size, self.size):
            raise StudyError(
                f"encoder {self.name!r} takes shape {(1, self.size, self.size)}, not {modality.sample_shape}",
                where=f"modality {modality.name!r}",
                hint="set the encoder's size to the modality's, or the other way round",
            )
        return VisionTransformer(self)


class DeiTTiny(VisionTransformerSpec):
    """DeiT-tiny at 224 pixels: 5.5 million parameters, for a GPU or patience."""

    name: ClassVar[str] = "deit-tiny"
    dim: int = Field(default=192, gt=0)
    num_layers: int = Field(default=12, gt=0)
    num_heads: int = Field(default=3, gt=0)
    patch_size: int = Field(default=16, gt=0)
    size: int = Field(default=224, gt=0)


class ViTMini(VisionTransformerSpec):
    """The same network for two cores.

    Two layers and 16-pixel patches learn most per CPU second on 800 images; 8-pixel patches and deeper ones lag behind.
    Its weights are drawn with a spread of 0.1: at a width of 64 the usual 0.02 learns markedly slower.
    """

    name: ClassVar[str] = "vit-mini"
    dim: int = Field(default=64, gt=0)
    num_layers: int = Field(default=3, gt=0)
    num_heads: int = Field(default=4, gt=0)
    patch_size: int = Field(default=16, gt=0)
    size: int = Field(default=64, gt=0)
    channels: Literal[1, 3] = 1
    init_std: float = Field(default=0.1, gt=0)


class VisionTransformer(Encoder):
    """A ViT on grey images; see :class:`VisionTransformerSpec` for which tokens leave."""

    def __init__(self, spec: VisionTransformerSpec) -> None:
        super().__init__()
        self.dim, self.spec = spec.dim, spec
        self.vit = _vit(spec)

    def forward(self, samples: Float[Tensor, "batch 1 row column"]) -> Float[Tensor, "batch tokens dim"]:
        """Encode normalised grey images."""
        hidden: Tensor = self.vit(samples.expand(-1, self.spec.channels, -1, -1)).last_hidden_state
        if self.spec.tokens == "all":
            return hidden
        if self.spec.tokens == "cls":
            return hidden[:, :1]
        grid = hidden[:, 1:].transpose(1, 2).reshape(len(hidden), self.dim, self.spec.patches, self.spec.patches)
        return F.adaptive_avg_pool2d(grid, self.spec.cells).flatten(2).transpose(1, 2)


def _vit(spec: VisionTransformerSpec) -> nn.Module:
    from transformers import ViTConfig, ViTModel  # noqa: PLC0415 (large; loaded where it is used)

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
    model: nn.Module = ViTModel(config, add_pooling_layer=False)
    return model


ENCODERS: tuple[type[EncoderSpec], ...] = (DeiTTiny, ViTMini)
