"""Pooled normalisation statistics: clients send count, sum and sum of squares per channel; no single value leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of mean and spread, per channel, in float64."""

    count: Float64[np.ndarray, " channel"]
    total: Float64[np.ndarray, " channel"]
    squares: Float64[np.ndarray, " channel"]

    @classmethod
    def zero(cls, num_channels: int) -> Moments:
        """Return the moments of no data."""
        return cls(np.zeros(num_channels), np.zeros(num_channels), np.zeros(num_channels))

    def plus(self, other: Moments) -> Moments:
        """Return the moments of both data together."""
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def as_json(self) -> dict[str, list[float]]:
        """Return the fields as lists."""
        return {"count": self.count.tolist(), "total": self.total.tolist(), "squares": self.squares.tolist()}

    @property
    def mean(self) -> Float64[np.ndarray, " channel"]:
        """Mean per channel; 0 where nothing was observed."""
        mean: np.ndarray = self.total / np.maximum(self.count, 1)
        return mean

    @property
    def std(self) -> Float64[np.ndarray, " channel"]:
        """Population standard deviation per channel; 1 where nothing was observed or all values are equal."""
        variance = self.squares / np.maximum(self.count, 1) - self.mean**2
        floor = 1e-12 * np.maximum(self.mean**2, 1)
        return np.where(variance > floor, np.sqrt(np.maximum(variance, floor)), 1.0)
