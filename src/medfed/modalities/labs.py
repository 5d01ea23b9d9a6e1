"""Blood laboratory values as percentiles (Symile-MIMIC), and the small MLP that encodes them.

A sample is ``[percentiles, then observed flags]``: 50 percentiles of the training set's distribution, and beside each
whether the value was measured; an unmeasured one carries the laboratory test's mean percentile. Percentiles are on one
scale already, so nothing is normalised and no hospital sends moments.

Source: Saporta et al. 2024, Contrasting with Symile, appendix on Symile-MIMIC: the MLP has three layers with GELU
between them, ends in a layer norm, and is 256 and 1024 wide inside.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float32, Float64, Shaped
from pydantic import Field
from torch import Tensor, nn

from medfed.errors import DataError, StudyError
from medfed.modalities.base import Encoder, EncoderSpec, Modality
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


class LabsMLPSpec(EncoderSpec):
    """Settings of the MLP.

    Attributes:
        dim: width of the one token that leaves.
        hidden: widths of the hidden layers; the paper's are 256 and 1024, and its ``dim`` is 8192.
        dropout: after every hidden layer; the paper has none.
    """

    name: ClassVar[str] = "labs-mlp"
    dim: int = Field(default=64, gt=0)
    hidden: tuple[int, ...] = (128, 128)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, modality: Modality) -> Encoder:
        """Return a freshly initialised encoder for flat samples; raise StudyError for others."""
        if len(modality.sample_shape) != 1:
            raise StudyError(
                f"encoder {self.name!r} takes flat samples, not of shape {modality.sample_shape}",
                where=f"modality {modality.name!r}",
                hint="choose another encoder for this modality",
            )
        return LabsMLP(self, modality.sample_shape[0])


class LabsMLP(Encoder):
    """Linear layers with GELU between them and a layer norm at the end: one token."""

    def __init__(self, spec: LabsMLPSpec, num_values: int) -> None:
        super().__init__()
        self.dim = spec.dim
        layers: list[nn.Module] = []
        for narrow, wide in pairwise((num_values, *spec.hidden)):
            layers += [nn.Linear(narrow, wide), nn.GELU(), nn.Dropout(spec.dropout)]
        inside = spec.hidden[-1] if spec.hidden else num_values
        self.layers = nn.Sequential(*layers, nn.Linear(inside, spec.dim), nn.LayerNorm(spec.dim))

    def forward(self, samples: Float[Tensor, "batch value"]) -> Float[Tensor, "batch 1 dim"]:
        """Encode percentiles and flags."""
        encoded: Tensor = self.layers(samples)
        return encoded[:, None]


MODALITIES: tuple[Modality, ...] = (LabPercentiles(),)
ENCODERS: tuple[type[EncoderSpec], ...] = (LabsMLPSpec,)
