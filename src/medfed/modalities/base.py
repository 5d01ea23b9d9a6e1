"""What a modality is: a named kind of measurement with a fixed sample shape, units, and a way to become one.

A dataset decodes a file to a raw array in physical units; the modality makes it a *sample* of fixed shape; moments
pooled from training clients only normalise it. An encoder maps ``[batch, *sample]`` to ``[batch, tokens, dim]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Float64, Shaped
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
    @abstractmethod
    def num_channels(self) -> int:
        """Number of channels normalised each by their own moments."""

    @abstractmethod
    def prepare(self, raw: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "*sample"]:
        """Turn a decoded array (physical units, any size) into a sample (same units, fixed shape, ``dtype``)."""

    @abstractmethod
    def moments(self, samples: Float32[np.ndarray, "example *sample"]) -> Moments:
        """Return count, sum and sum of squares per channel over the observed values of ``samples``."""

    @abstractmethod
    def normalise(
        self,
        samples: Float32[np.ndarray, "example *sample"],
        mean: Float64[np.ndarray, " channel"],
        std: Float64[np.ndarray, " channel"],
    ) -> Float32[np.ndarray, "example *sample"]:
        """Return samples with zero mean and unit spread per channel; unobserved values become 0."""
