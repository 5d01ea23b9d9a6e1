"""Base of the modalities: a named kind of measurement with units and a fixed sample shape.

A dataset decodes a file to a raw array in physical units, and the modality makes it a *sample* of fixed shape. Moments
pooled over training clients normalise it. An encoder maps ``[batch, *sample]`` to ``[batch, tokens, dim]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Shaped
from pydantic import BaseModel, ConfigDict

from medfed.modalities.moments import Moments

__all__ = ["Modality"]


class Modality(BaseModel, ABC):
    """One kind of measurement; a frozen setting object, so it can stand in a study.

    Attributes:
        dtype: of the samples in memory; models compute in their own precision.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    units: ClassVar[str]
    dtype: ClassVar[type[np.generic]] = np.float32

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
        """Turn a decoded array (physical units, any size) into a sample (same units, fixed shape, ``dtype``)."""

    def moments(self, samples: Shaped[np.ndarray, "example *sample"]) -> Moments:
        """Return count, sum and sum of squares per channel over the observed values of ``samples``.

        By default nothing is pooled: ids, classes and percentiles have no scale to normalise.
        """
        return Moments.zero(self.num_channels)

    def normalise(
        self,
        samples: Shaped[np.ndarray, "example *sample"],
        mean: Float64[np.ndarray, " channel"],
        std: Float64[np.ndarray, " channel"],
    ) -> Shaped[np.ndarray, "example *sample"]:
        """Return samples with zero mean and unit spread per channel; unobserved values become 0.

        By default the samples themselves are returned, not a copy.
        """
        return samples
