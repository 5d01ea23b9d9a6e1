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

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from medfed.models.base import Encoder
from medfed.study.encoders import VisionTransformerSpec


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
