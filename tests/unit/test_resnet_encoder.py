"""ResNet-50 is the published network, and its settings are checked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medfed.core.catalog import TASKS
from medfed.core.errors import StudyError
from medfed.datasets.tables import CHEXPERT_LABELS
from medfed.modalities.image import ImageModality
from medfed.modalities.signal import SignalModality
from medfed.modalities.text import TextModality
from medfed.models.multimodal import MultimodalModel
from medfed.study.encoders import BertSpec, ResNetMini, ResNetSpec

MIMIC_CXR = TASKS["mimic-cxr"]


def bottleneck(narrow: int, wide: int, *, first: bool) -> int:
    """Weights of 1×1, 3×3, 1×1 convolutions with a BatchNorm each, and of the projection of a stage's first block."""
    inside = wide // 4
    size = narrow * inside + 9 * inside * inside + inside * wide + 2 * (2 * inside + wide)
    return size + first * (narrow * wide + 2 * wide)


def test_resnet_50_is_the_published_size() -> None:
    """25,557,032 parameters with the 1000-class head of 2,049,000; 23,508,032 without."""
    stem, depths, widths = 3 * 64 * 49 + 2 * 64, (3, 4, 6, 3), (256, 512, 1024, 2048)
    expected, narrow = stem, 64
    for depth, wide in zip(depths, widths, strict=True):
        expected += bottleneck(narrow, wide, first=True) + (depth - 1) * bottleneck(wide, wide, first=False)
        narrow = wide
    with torch.device("meta"):
        encoder = ResNetSpec().build(ImageModality(size=224))
    count = sum(param.numel() for param in encoder.parameters())
    print(f"{count:,} parameters, {expected:,} by hand")
    assert count == expected == 23_508_032


def test_the_full_size_image_text_model_can_be_built() -> None:
    encoders = {"image": ResNetSpec(), "report": BertSpec()}
    modalities = {"image": ImageModality(size=224), "report": TextModality(name="report", num_tokens=256)}
    with torch.device("meta"):
        model = MultimodalModel(encoders, modalities, (MIMIC_CXR,))
    head = [param.shape for name, param in model.named_parameters() if name.startswith("heads.mimic-cxr")]
    assert (len(CHEXPERT_LABELS), 2048 + 768) in head
    layers = {name: sum(param.numel() for param in part.parameters()) for name, part in model.encoders.items()}
    print("BERT-base has 12 blocks of 7,087,872; its embeddings depend on the vocabulary")
    assert layers["image"] == 23_508_032
    assert layers["report"] == 12 * 7_087_872 + (8192 + 256 + 1 + 2) * 768


def test_group_norm_leaves_no_batch_norm() -> None:
    image = ImageModality(size=64)
    by_group, by_batch = ResNetMini().build(image), ResNetMini(norm="batch").build(image)
    assert not [part for part in by_group.modules() if isinstance(part, nn.BatchNorm2d)]
    assert not list(by_group.buffers())
    assert [part for part in by_batch.modules() if isinstance(part, nn.BatchNorm2d)]
    assert sum(p.numel() for p in by_group.parameters()) == sum(p.numel() for p in by_batch.parameters())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_groups": 5}, "num_groups=5 must divide"),
        ({"num_tokens": 3}, "num_tokens=3 must be a square"),
        ({"depths": (1, 0)}, "must be positive"),
        ({"dim": 65}, "dim=65 must be divisible"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ResNetMini.model_validate(fields)


@pytest.mark.parametrize("modality", [SignalModality(), ImageModality(size=16)], ids=lambda modality: modality.name)
def test_what_is_no_large_enough_image_is_refused(modality: ImageModality | SignalModality) -> None:
    with pytest.raises(StudyError, match="takes grey images of 32 or more pixels"):
        ResNetMini().build(modality)
