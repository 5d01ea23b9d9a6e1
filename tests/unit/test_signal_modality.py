"""The ECG modality: gaps, length, sampling frequency, pooled moments."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.core.errors import DataError
from medfed.modalities.signal import SignalModality


def test_gaps_are_interpolated_and_a_dead_lead_is_flat() -> None:
    raw = np.array([[1.0, np.nan, np.nan, 4.0], [np.nan, 2.0, 2.5, np.inf], [np.nan] * 4])
    sample = SignalModality(num_leads=3, length=4).prepare(raw)
    print("lead 0: 1, ?, ?, 4 → thirds of the way; lead 1: the ends hold the nearest value; lead 2: nothing → 0")
    np.testing.assert_allclose(sample, [[1, 2, 3, 4], [2, 2, 2.5, 2.5], [0, 0, 0, 0]])


@pytest.mark.parametrize(("length", "expected"), [(2, [2, 3]), (3, [1, 2, 3]), (7, [0, 1, 2, 3, 4, 0, 0])])
def test_a_recording_is_centred(length: int, expected: list[float]) -> None:
    raw = np.array([[1.0, 2.0, 3.0, 4.0]])
    np.testing.assert_array_equal(SignalModality(num_leads=1, length=length).prepare(raw), [expected])


def test_another_sampling_frequency_resamples() -> None:
    wave = np.sin(2 * np.pi * 3 * np.arange(1000) / 100)[None]  # 3 Hz for 10 s
    half = SignalModality(num_leads=1, length=500, sampling_hz=50).prepare(wave)
    expected = np.sin(2 * np.pi * 3 * np.arange(500) / 50)
    assert half.shape == (1, 500)
    assert np.abs(half[0, 20:-20] - expected[20:-20]).max() < 0.02


@pytest.mark.parametrize("shape", [(11, 1000), (12,), (12, 0), (1000, 12)])
def test_wrong_leads_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="12 leads"):
        SignalModality().prepare(np.zeros(shape))


def test_moments_of_two_clients_pool_to_zero_mean_and_unit_spread() -> None:
    rng = np.random.default_rng(0)
    modality = SignalModality(num_leads=2, length=50)
    samples = (rng.normal(3, 2, (6, 2, 50)) * [[1], [5]]).astype(np.float32)
    pooled = modality.moments(samples[:2]).plus(modality.moments(samples[2:]))
    print(f"count per lead = 6 examples × 50 samples = {pooled.count}")
    np.testing.assert_array_equal(pooled.count, [300, 300])
    scaled = modality.normalise(samples, pooled.mean, pooled.std)
    np.testing.assert_allclose(scaled.mean((0, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std((0, 2)), 1, atol=1e-5)
    assert scaled.dtype == np.float32
