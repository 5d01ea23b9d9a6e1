"""Blood laboratory values as percentiles (Symile-MIMIC; Saporta et al. 2024, Contrasting with Symile).

A sample is ``[percentiles, then observed flags]``: 50 percentiles of the training set's distribution, and a flag for
each that was measured. An unmeasured one carries the laboratory test's mean percentile. Percentiles are on one scale
already, so nothing is normalised and no hospital sends moments.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Shaped
from pydantic import Field

from medfed.core.errors import DataError
from medfed.modalities.base import Modality


class LabPercentiles(Modality):
    """Laboratory percentiles and flags of those measured."""

    units: ClassVar[str] = "percentile in [0, 1] of the training set"
    name: str = "lab-percentiles"
    num_labs: int = Field(default=50, gt=0)

    @property
    def sample_shape(self) -> tuple[int]:
        """``(2 · num_labs,)``."""
        return (2 * self.num_labs,)

    def prepare(self, raw: Shaped[np.ndarray, "..."]) -> Float32[np.ndarray, " value"]:
        """Lay the two rows side by side: percentiles in [0, 1], and flags, 1 where measured and 0 where not."""
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


MODALITIES: tuple[Modality, ...] = (LabPercentiles(),)
