"""Pooled normalisation statistics: clients send count, sum and sum of squares per channel; no single value leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from medfed.core.errors import DataError


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

    @classmethod
    def from_json(cls, modality: str, value: object) -> Moments:
        """Read what :meth:`as_json` returned for ``modality``.

        Raises:
            DataError: it is not three lists of as many finite numbers, or a count is no count.
        """
        try:
            parts = [np.array(value[name], np.float64) for name in ("count", "total", "squares")]  # type: ignore[index]
        except (KeyError, TypeError, ValueError) as error:
            raise _bad(modality, "they are not lists of numbers by count, total and squares") from error
        if any(part.ndim != 1 or part.shape != parts[0].shape for part in parts):
            raise _bad(modality, "the lists are not of one length")
        count, _, squares = parts
        if not all(np.isfinite(part).all() for part in parts) or (count < 0).any() or (squares < 0).any():
            raise _bad(modality, "a number is not finite, or a count or a sum of squares is negative")
        return cls(*parts)

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


def _bad(modality: str, what: str) -> DataError:
    return DataError(what, where=f"moments of {modality!r}", hint="both sides must run the same version of medfed")
