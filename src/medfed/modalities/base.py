"""Base of the modalities: a named kind of measurement with units and a fixed sample shape.

A dataset decodes a file to a raw array in physical units, and the modality makes it a *sample* of fixed shape. Moments
pooled over training clients normalise it: clients send count, sum and sum of squares per channel, no single value. An
encoder maps ``[batch, *sample]`` to ``[batch, tokens, dim]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Shaped
from pydantic import BaseModel, ConfigDict

from medfed.core.errors import DataError

__all__ = ["Modality", "Moments"]

PerChannel = Float64[np.ndarray, " channel"]
PerExample = Float64[np.ndarray, "example variable"]
Samples = Shaped[np.ndarray, "example *sample"]


class Modality(BaseModel, ABC):
    """One kind of measurement; a frozen setting object, so it can stand in a study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    units: ClassVar[str]
    dtype: ClassVar[type[np.generic]] = np.float32
    """Of the samples in memory; models compute in their own precision."""

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, without the batch axis."""

    @property
    def num_channels(self) -> int:
        """Number of channels, each normalised by its moments."""
        return 1

    @abstractmethod
    def prepare(self, raw: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "*sample"]:
        """Turn a decoded array (physical units, any size) into a sample (same units, fixed shape, ``dtype``).

        Raises DataError if the array is of another shape or holds values that it cannot hold.
        """

    def moments(self, samples: Samples) -> Moments:
        """Return count, sum and sum of squares per channel over the observed values of ``samples``.

        By default nothing is pooled: ids, classes and percentiles have no scale to normalise.
        """
        return Moments.zero(self.num_channels)

    def normalise(self, samples: Samples, mean: PerChannel, std: PerChannel) -> Samples:
        """Return samples with zero mean and unit spread per channel; unobserved values become 0.

        By default the samples themselves are returned, not a copy.
        """
        return samples

    def extremes(self, samples: Samples) -> tuple[PerExample, PerExample] | None:
        """Return the lowest and the highest observed value per example and channel, NaN where none was observed.

        None, by default: a picture or a text has no values that could be called high or low.
        """
        return None

    def measures(self, samples: Samples) -> dict[str, Float64[np.ndarray, " example"]]:
        """Return what is measured on every example, by name, NaN where it cannot be; none by default.

        Names are those of rules (:mod:`medfed.core.rules`): ``variable.kind``. ``samples`` are in physical units.
        """
        return {}

    @property
    def measure_units(self) -> dict[str, str]:
        """Variable → its unit, of those that :meth:`measures` names."""
        return {}


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of mean and spread, per channel, in float64."""

    count: PerChannel
    total: PerChannel
    squares: PerChannel

    @classmethod
    def zero(cls, num_channels: int) -> Moments:
        """Return the moments of no data."""
        return cls(np.zeros(num_channels), np.zeros(num_channels), np.zeros(num_channels))

    def plus(self, other: Moments) -> Moments:
        """Return the moments of both data together."""
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def as_json(self) -> dict[str, list[float]]:
        """Return the fields as lists."""
        return {name: values.tolist() for name, values in vars(self).items()}

    @classmethod
    def from_json(cls, modality: str, value: object) -> Moments:
        """Read what :meth:`as_json` returned for ``modality``.

        Raises DataError if it is not three lists of as many finite numbers, or a count is no count.
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
    def mean(self) -> PerChannel:
        """Mean per channel; 0 where nothing was observed."""
        return np.asarray(self.total / np.maximum(self.count, 1))

    @property
    def std(self) -> PerChannel:
        """Population standard deviation per channel; 1 where nothing was observed or all values are equal."""
        variance = self.squares / np.maximum(self.count, 1) - self.mean**2
        floor = 1e-12 * np.maximum(self.mean**2, 1)
        return np.where(variance > floor, np.sqrt(np.maximum(variance, floor)), 1.0)


def _bad(modality: str, what: str) -> DataError:
    return DataError(what, where=f"moments of {modality!r}", hint="both sides must run the same version of medfed")
