"""What every registered encoder must honour: shapes, gradients, and that one example does not see another."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from medfed.core.catalog import ENCODERS
from medfed.core.errors import StudyError
from medfed.core.torch_rng import torch_rng, torch_seeded
from medfed.modalities.base import Modality
from medfed.models.base import Encoder
from medfed.study.encoders import Conv1dSpec, DeiTTiny, ResNetMini, TransformerSpec, ViTMini
from medfed.study.parts import EncoderSpec
from support.federated_toys import Vector


class Samples(Vector):
    """A modality of any sample shape."""

    name: str = "toy"
    shape: tuple[int, ...]
    units: ClassVar[str] = "none"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.shape


SHAPES = {
    "deit-tiny": (1, 224, 224),
    "vit-mini": (1, 64, 64),
    "resnet": (1, 64, 64),
    "resnet-mini": (1, 64, 64),
    "conv1d": (12, 1000),
    "transformer": (24, 14),
    "text-mini": (16,),
    "bert": (16,),
    "labs-mlp": (100,),
}
BIG = ("bert", "resnet")
"""Full-size architectures, built from the code of a small one that stands here."""
VARIANTS: dict[str, tuple[EncoderSpec, int]] = {
    **{
        name: (kind(), {"transformer": 1, "text-mini": 16, "labs-mlp": 1, "resnet-mini": 1}.get(name, 4))
        for name, kind in ENCODERS.items()
        if name in SHAPES and name not in BIG
    },
    "vit-mini cls": (ViTMini(tokens="cls"), 1),
    "vit-mini all": (ViTMini(tokens="all", patch_size=32), 5),
    "vit-mini one": (ViTMini(num_tokens=1, dropout=0.1, channels=3), 1),
    "resnet-mini grid": (ResNetMini(num_tokens=4, channels=3, block="bottleneck", dim=128, stem=8), 4),
    "resnet-mini batch": (ResNetMini(norm="batch", depths=(1, 2, 1)), 1),
    "conv1d batch": (Conv1dSpec(norm="batch", num_tokens=3, dropout=0.1, dim=16), 3),
    "transformer spans": (TransformerSpec(num_tokens=6, dropout=0.1, dim=32), 6),
}
every = pytest.mark.parametrize("variant", VARIANTS)


def build(spec: EncoderSpec) -> Encoder:
    with torch_seeded("encoder"):
        return spec.build(Samples(shape=SHAPES[spec.name]))


def samples(spec: EncoderSpec, batch: int) -> Tensor:
    values = torch.randn(batch, *SHAPES[spec.name], generator=torch_rng("samples"))
    if spec.name == "text-mini":
        return torch.randint(0, 500, values.shape, generator=torch_rng("words")).float()
    if spec.name == "transformer":
        observed = (torch.rand(batch, 24, 7, generator=torch_rng("flags")) < 0.3).float()
        observed[:, ::5] = 0
        values = torch.cat([values[:, :, :7] * observed, observed], 2)
    return values


def test_every_registered_encoder_is_tested_here() -> None:
    assert SHAPES.keys() == ENCODERS.keys()


@every
def test_shape_and_finite(variant: str) -> None:
    spec, tokens = VARIANTS[variant]
    encoded = build(spec)(samples(spec, 3))
    assert encoded.shape == (3, tokens, spec.dim)
    assert build(spec).dim == spec.dim
    assert torch.isfinite(encoded).all()


@every
def test_gradient_reaches_every_parameter(variant: str) -> None:
    spec, _ = VARIANTS[variant]
    encoder = build(spec)
    encoded = encoder(samples(spec, 3))
    (encoded * torch.randn(encoded.shape, generator=torch_rng("probe"))).sum().backward()
    dead = [name for name, param in encoder.named_parameters() if param.grad is None or not param.grad.any()]
    # A key's bias shifts all scores of a query alike, and softmax does not see it: its gradient is rounding only.
    assert not dead


@every
def test_an_example_does_not_see_the_others(variant: str) -> None:
    spec, _ = VARIANTS[variant]
    encoder = build(spec)
    encoder.train(spec.model_dump().get("norm") != "batch" and spec.model_dump().get("dropout", 0) == 0)
    given = samples(spec, 4)
    order = torch.tensor([2, 0, 3, 1])
    encoded = encoder(given)
    close = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(encoder(given[order]), encoded[order], **close)
    other = given.clone()
    other[0] = (5 * torch.randn(given.shape[1:], generator=torch_rng("another patient"))).abs().round()
    changed = encoder(other)
    torch.testing.assert_close(changed[1:], encoded[1:], **close)
    assert (changed[0] - encoded[0]).abs().max() > 0.01, "the encoder ignores its input"


@every
def test_the_same_seed_gives_the_same_encoder(variant: str) -> None:
    spec, _ = VARIANTS[variant]
    one, two = build(spec).state_dict(), build(spec).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (ViTMini(), (1, 224, 224)),
        (DeiTTiny(), (1, 64, 64)),
        (ViTMini(), (3, 64, 64)),
        (Conv1dSpec(), (12, 80)),
        (Conv1dSpec(), (1, 64, 64)),
        (TransformerSpec(), (24, 7)),
        (TransformerSpec(num_tokens=5), (24, 14)),
    ],
    ids=str,
)
def test_a_modality_it_cannot_take_is_refused(spec: EncoderSpec, shape: tuple[int, ...]) -> None:
    modality: Modality = Samples(shape=shape)
    with pytest.raises(StudyError, match=r"modality 'toy': encoder .* takes"):
        spec.build(modality)


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (ViTMini, {"num_heads": 5}, "num_heads=5 must divide dim=64"),
        (ViTMini, {"patch_size": 12}, "patch_size=12 must divide size=64"),
        (ViTMini, {"num_tokens": 3}, "num_tokens=3 must be a square number up to 16"),
        (ViTMini, {"num_tokens": 25}, "num_tokens=25 must be a square number up to 16"),
        (Conv1dSpec, {"kernel_size": 4}, "kernel_size=4 must be odd"),
        (Conv1dSpec, {"num_groups": 5}, "num_groups=5 must divide"),
        (TransformerSpec, {"num_heads": 5}, "num_heads=5 must divide dim=64"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kind: type[EncoderSpec], fields: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind(**fields)


def test_deit_tiny_is_the_published_size() -> None:
    """5.7 million with the 1000-class head of 193,000; 5.5 million without."""
    count = sum(param.numel() for param in build(DeiTTiny()).parameters())
    patches, layer = 16 * 16 * 3 * 192 + 192, 4 * (192 * 192 + 192) + 2 * 192 * 768 + 768 + 192 + 4 * 192
    assert count == patches + 192 + 197 * 192 + 12 * layer + 2 * 192
    print(f"{count:,} parameters")
    assert 5.5e6 < count < 5.55e6


def test_grid_tokens_say_where() -> None:
    """With the positions switched off and one layer's worth of mixing, a bright corner stands out in its own token."""
    encoder = build(ViTMini())
    dark = torch.zeros(1, 1, 64, 64)
    bright = dark.clone()
    bright[:, :, 32:, :32] = 3.0
    moved = (encoder(bright) - encoder(dark)).norm(dim=2)[0]
    assert int(moved.argmax()) == 2, moved  # row-major: the lower left


def test_a_stay_without_any_measurement_has_an_encoding_and_a_gradient() -> None:
    encoder = build(TransformerSpec(num_tokens=4))
    given = samples(TransformerSpec(), 3)
    given[1] = 0
    encoded = encoder(given)
    assert torch.isfinite(encoded).all()
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval()(given), encoded, rtol=0, atol=1e-5)
    encoded.square().sum().backward()
    assert all(torch.isfinite(param.grad).all() for param in encoder.parameters() if param.grad is not None)


@pytest.mark.parametrize("training", [True, False])
def test_unmeasured_hours_do_not_matter(training: bool) -> None:
    """Whatever stands in an hour without flags, no token changes; an hour with one flag does matter."""
    encoder = build(TransformerSpec(num_tokens=4)).train(training)
    given = samples(TransformerSpec(), 2)
    silent = given.clone()
    silent[:, 5, :7] = 9.0
    assert not given[:, 5, 7:].any()
    with torch.no_grad():
        torch.testing.assert_close(encoder(silent), encoder(given), rtol=0, atol=1e-5)
        given[:, 5, 7] = 1
        silent[:, 5, 7] = 1
        assert (encoder(silent) - encoder(given)).abs().max() > 0.01


def test_the_transformer_knows_the_order_of_hours() -> None:
    encoder = build(TransformerSpec())
    encoder.positions.data.mul_(50)
    given = samples(TransformerSpec(), 2)
    assert (encoder(given.flip(1)) - encoder(given)).abs().max() > 0.01


def test_batch_norm_has_buffers_and_group_norm_has_none() -> None:
    assert not list(build(Conv1dSpec()).buffers())
    assert len(list(build(Conv1dSpec(norm="batch")).buffers())) == 12


def test_all_tokens_pool_to_grid_tokens() -> None:
    """``grid`` is the average of ``all`` over each quarter of the patches."""
    everything, grid = build(ViTMini(tokens="all")), build(ViTMini())
    given = samples(ViTMini(), 2)
    patches = everything(given)[:, 1:].detach().numpy().reshape(2, 2, 2, 2, 2, 64)
    np.testing.assert_allclose(grid(given).detach().numpy().reshape(2, 2, 2, 64), patches.mean((2, 4)), atol=1e-5)
