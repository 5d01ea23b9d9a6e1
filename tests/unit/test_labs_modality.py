"""Laboratory percentiles: the sample's layout, what is refused, and that nothing is normalised."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.core.errors import DataError
from medfed.modalities.timeseries import LabPercentiles

LABS = LabPercentiles(num_labs=3)
RAW = np.array([[0.25, 0.5, 1.0], [1, 0, 1]])


def test_percentiles_come_first_then_flags() -> None:
    sample = LABS.prepare(RAW)
    assert sample.dtype == np.float32
    assert sample.tolist() == [0.25, 0.5, 1.0, 1, 0, 1]
    assert LABS.sample_shape == sample.shape


def test_nothing_is_normalised() -> None:
    samples = LABS.prepare(RAW)[None]
    pooled = LABS.moments(samples).plus(LABS.moments(samples))
    np.testing.assert_array_equal(LABS.normalise(samples, pooled.mean, pooled.std), samples)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (RAW[:, :2], r"shape \(2, 2\); \(2, 3\) is needed"),
        (RAW * [[1], [2]], "a flag is neither 0 nor 1"),
        (RAW * [[2], [1]], r"a percentile is outside \[0, 1\]"),
        (np.where(RAW == 0.5, np.nan, RAW), r"a percentile is outside \[0, 1\]"),
    ],
)
def test_other_values_are_refused(raw: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        LABS.prepare(raw)
    assert caught.value.hint
