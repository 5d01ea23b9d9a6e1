"""The ICU modalities: values and observed flags, moments over observed values only."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.core.errors import DataError
from medfed.modalities.timeseries import CLIP, ICU, TimeSeriesModality

PAIR = TimeSeriesModality(name="pair", variables=("a", "b"), num_hours=4)


def test_values_come_first_and_flags_after() -> None:
    raw = np.array([[1.0, np.nan], [np.nan, 0.0]])
    print("row 0: a=1 seen, b not; row 1: a not, b=0 seen (a zero that was measured); rows 2, 3: after the stay")
    np.testing.assert_array_equal(PAIR.prepare(raw), [[1, 0, 1, 0], [0, 0, 0, 1], [0] * 4, [0] * 4])


def test_later_hours_are_cut() -> None:
    raw = np.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(PAIR.prepare(raw)[:, :2], raw[:4])


def test_unobserved_values_enter_neither_moments_nor_scores() -> None:
    first = PAIR.prepare(np.array([[10.0, np.nan], [14.0, np.nan]]))
    second = PAIR.prepare(np.array([[np.nan, np.nan], [18.0, 5.0], [np.nan, 5.0]]))
    samples = np.stack([first, second])
    moments = PAIR.moments(samples)
    print("a: 10, 14, 18 → count 3, mean 14, variance (16+0+16)/3; b: 5, 5 → count 2, mean 5, no spread → std 1")
    np.testing.assert_array_equal(moments.count, [3, 2])
    np.testing.assert_allclose(moments.mean, [14, 5])
    np.testing.assert_allclose(moments.std, [np.sqrt(32 / 3), 1])
    scaled = PAIR.normalise(samples, moments.mean, moments.std)
    score = 4 / np.sqrt(32 / 3)
    np.testing.assert_allclose(scaled[0, :, 0], [-score, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(scaled[1, :, 0], [0, score, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(scaled[..., 2:], samples[..., 2:])


def test_artefacts_are_clipped() -> None:
    sample = PAIR.prepare(np.array([[1e6, -1e6]]))[None]
    np.testing.assert_array_equal(PAIR.normalise(sample, np.zeros(2), np.ones(2))[0, 0, :2], [CLIP, -CLIP])


def test_the_four_icu_modalities_hold_48_variables_once_each() -> None:
    assert {name: len(variables) for name, variables in ICU.items()} == {
        "vitals": 7,
        "labs": 39,
        "input": 1,
        "output": 1,
    }
    assert len({variable for variables in ICU.values() for variable in variables}) == 48
    assert ICU["labs"] == tuple(sorted(ICU["labs"]))
    assert TimeSeriesModality(name="labs", variables=ICU["labs"], num_hours=12).sample_shape == (12, 78)


def test_a_wrong_number_of_variables_is_named() -> None:
    with pytest.raises(DataError, match="2 variables"):
        PAIR.prepare(np.zeros((4, 3)))
