"""Volumes and masks on a grid: standardised inside the brain, centred, never cut."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.core.errors import DataError
from medfed.modalities.volume import MaskModality, VolumeModality


def test_a_volume_is_standardised_inside_the_brain_and_zero_outside() -> None:
    raw = np.zeros((10, 12, 9), np.int16)
    raw[2:8, 3:9, 1:8] = np.random.default_rng(0).integers(50, 900, (6, 6, 7))
    sample = VolumeModality(name="t1", size=(16, 12, 10)).prepare(raw)
    assert (sample.shape, sample.dtype) == ((16, 12, 10), np.float16)
    placed = np.zeros((16, 12, 10))
    placed[3:13, 0:12, 0:9] = raw  # (16 − 10) // 2 = 3, 0 and (10 − 9) // 2 = 0 before
    inside = placed != 0
    expected = (placed[inside] - placed[inside].mean()) / placed[inside].std()
    np.testing.assert_allclose(sample[inside], expected, atol=2e-3)
    assert not sample[~inside].any()


@pytest.mark.parametrize("factor", [0.01, 3.0])
def test_a_scanner_s_scale_does_not_matter(factor: float) -> None:
    raw = np.random.default_rng(1).uniform(1, 900, (8, 8, 8))
    modality = VolumeModality(name="t1", size=8)
    np.testing.assert_allclose(modality.prepare(raw), modality.prepare(raw * factor), atol=2e-3)


def test_a_mask_travels_with_the_volume() -> None:
    raw = np.random.default_rng(2).uniform(1, 2, (9, 8, 11))
    mask = (raw > 1.5).astype(np.uint8)
    size = (16, 9, 12)
    volume, placed = VolumeModality(name="t1", size=size).prepare(raw), MaskModality(name="m", size=size).prepare(mask)
    assert placed.dtype == np.uint8
    assert placed.sum() == mask.sum()
    assert volume[placed == 1].min() > volume[(placed == 0) & (volume != 0)].max()


def test_nothing_is_pooled_and_nothing_copied() -> None:
    modality = VolumeModality(name="t1", size=8)
    samples = np.ones((2, 8, 8, 8), np.float16)
    moments = modality.moments(samples)
    assert moments.count.sum() == 0
    assert modality.normalise(samples, moments.mean, moments.std) is samples


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (np.ones((8, 8), np.float32), "three axes"),
        (np.ones((9, 8, 8), np.float32), "no contrast"),
        (np.zeros((8, 8, 8), np.float32), "no contrast"),
        (np.arange(9 * 8 * 8, dtype=np.float32).reshape(9, 8, 8), r"9 × 8 × 8 voxels does not fit"),
        (np.full((8, 8, 8), np.nan, np.float32), "not finite"),
    ],
)
def test_a_volume_that_cannot_be_used_is_refused(raw: np.ndarray, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        VolumeModality(name="t1", size=8).prepare(raw)


def test_a_mask_that_is_no_class_per_voxel_is_refused() -> None:
    with pytest.raises(DataError, match="float32; expected uint8"):
        MaskModality(name="m", size=8).prepare(np.ones((8, 8, 8), np.float32))
