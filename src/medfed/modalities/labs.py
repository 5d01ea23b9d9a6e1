"""Blood laboratory values as percentiles (Symile-MIMIC), and the small MLP that encodes them.

A sample is ``[percentiles, then observed flags]``: 50 percentiles of the training set's distribution, and beside each
whether the value was measured; an unmeasured one carries the laboratory test's mean percentile. Percentiles are on one
scale already, so nothing is normalised and no hospital sends moments.

Source: Saporta et al. 2024, Contrasting with Symile, appendix on Symile-MIMIC: the MLP has three layers with GELU
between them, ends in a layer norm, and is 256 and 1024 wide inside.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Float64, Shaped
from pydantic import Field

from medfed.core.errors import DataError
from medfed.modalities.base import Modality
from medfed.modalities.moments import Moments


class LabPercentiles(Modality):
    """Laboratory percentiles and flags that say which were measured.

    Attributes:
        num_labs: laboratory tests.
    """

    units: ClassVar[str] = "percentile in [0, 1] of the training set"
    name: str = "lab-percentiles"
    num_labs: int = Field(default=50, gt=0)

    @property
    def sample_shape(self) -> tuple[int]:
        """``(2 · num_labs,)``."""
        return (2 * self.num_labs,)

    @property
    def num_channels(self) -> int:
        """One: all tests share the scale."""
        return 1

    def prepare(self, raw: Shaped[np.ndarray, "..."]) -> Float32[np.ndarray, " value"]:
        """Lay percentiles and flags side by side.

        Args:
            raw: ``[2, num_labs]``: percentiles in [0, 1], then 1 where measured and 0 where not.

        Raises:
            DataError: another shape, a percentile outside [0, 1] (or NaN), or a flag that is neither 0 nor 1.
        """
        hint = "check the dataset's load"
        if raw.shape != (2, self.num_labs):
            wrong = f"laboratory values have shape {raw.shape}; {(2, self.num_labs)} is needed"
            raise DataError(wrong, where=self.name, hint=hint)
        percentiles, flags = raw.astype(np.float32)
        if not ((percentiles >= 0) & (percentiles <= 1)).all():  # false for NaN as well
            raise DataError("a percentile is outside [0, 1]", where=self.name, hint=hint)
        if not np.isin(flags, (0, 1)).all():
            raise DataError("a flag is neither 0 nor 1", where=self.name, hint=hint)
        return np.concatenate([percentiles, flags])

    def moments(self, samples: Float32[np.ndarray, "example value"]) -> Moments:
        """Return the moments of nothing, whose mean is 0 and whose spread is 1."""
        return Moments.zero(1)

    def normalise(
        self,
        samples: Float32[np.ndarray, "example value"],
        mean: Float64[np.ndarray, " channel"],
        std: Float64[np.ndarray, " channel"],
    ) -> Float32[np.ndarray, "example value"]:
        """Return a copy: percentiles and flags stay as they are."""
        return samples.copy()


MODALITIES: tuple[Modality, ...] = (LabPercentiles(),)
