"""A grey image becomes a square sample, and its moments are those of its pixels."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.core.errors import DataError
from medfed.modalities.image import ImageModality

MODALITY = ImageModality(size=8)


def test_shape_follows_size() -> None:
    assert ImageModality().sample_shape == (1, 64, 64)
    assert MODALITY.prepare(np.zeros((50, 70), np.float32)).shape == (1, 8, 8)


def test_an_image_of_the_right_size_is_untouched() -> None:
    image = np.random.default_rng(0).random((8, 8), dtype=np.float32)
    np.testing.assert_array_equal(MODALITY.prepare(image)[0], image)


def test_resizing_averages_instead_of_skipping() -> None:
    # A checkerboard of single pixels: picking every fourth pixel gives all 0 or all 1; the triangle filter, eight
    # pixels wide at a factor of four, weighs both colours alike, so every interior pixel is 1/2.
    board = (np.indices((32, 32)).sum(0) % 2).astype(np.float32)
    sample = MODALITY.prepare(board)[0]
    np.testing.assert_allclose(sample[1:-1, 1:-1], 0.5, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
def test_the_longer_side_is_cut_evenly(shape: tuple[int, int]) -> None:
    # 12 = 2 + 8 + 2: the two outer bands of ones go, zeros stay.
    image = np.ones((12, 12), np.float32)
    image[2:10, 2:10] = 0
    image = image[(12 - shape[0]) // 2 : (12 + shape[0]) // 2, (12 - shape[1]) // 2 : (12 + shape[1]) // 2]
    assert MODALITY.prepare(image).max() == 0


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (np.zeros((3, 8, 8), np.float32), "shape (3, 8, 8)"),
        (np.zeros((0, 8), np.float32), "shape (0, 8)"),
        (np.full((8, 8), 255.0, np.float32), "from 255 to 255"),
        (np.full((8, 8), np.nan, np.float32), "expected [0, 1]"),
    ],
)
def test_what_is_not_a_grey_image_is_refused(raw: np.ndarray, words: str) -> None:
    with pytest.raises(DataError) as error:
        MODALITY.prepare(raw)
    assert words in str(error.value)


def test_moments_are_those_of_the_pixels_and_normalise_to_zero_and_one() -> None:
    samples = np.random.default_rng(1).random((5, 1, 8, 8), dtype=np.float32)
    moments = MODALITY.moments(samples[:2]).plus(MODALITY.moments(samples[2:]))
    assert moments.count.tolist() == [5 * 64]
    np.testing.assert_allclose(moments.mean, samples.astype(np.float64).mean(), rtol=1e-12)
    np.testing.assert_allclose(moments.std, samples.astype(np.float64).std(), rtol=1e-9)
    before = samples.copy()
    scaled = MODALITY.normalise(samples, moments.mean, moments.std)
    np.testing.assert_array_equal(samples, before)
    assert abs(float(scaled.mean())) < 1e-5
    assert abs(float(scaled.std()) - 1) < 1e-5
