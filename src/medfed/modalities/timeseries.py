"""Clinical values by the hour: vital signs, lab events, input and output of an ICU stay (FedKIM Table 2, MP and SP).

A sample carries values and a flag for each observed one. The choice of measurements is informative, and a zero must not
pass for a measurement. Only observed values enter the moments.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Float64, Shaped
from pydantic import Field

from medfed.core.errors import DataError
from medfed.modalities.base import Modality, Moments, PerExample

# fmt: off
VITALS = ("hr", "resp", "temp", "sbp", "dbp", "map", "o2sat")
LABS = (
    "alb", "alp", "alt", "ast", "be", "bicar", "bili", "bili_dir", "bnd", "bun", "ca", "cai", "ck", "ckmb", "cl",
    "crea", "crp", "fgn", "glu", "hgb", "inr_pt", "k", "lact", "lymph", "mch", "mchc", "mcv", "methb", "mg", "na",
    "neut", "pco2", "ph", "phos", "plt", "po2", "ptt", "tnt", "wbc",
)

# fmt: on
ICU = {"vitals": VITALS, "labs": LABS, "input": ("fio2",), "output": ("urine",)}
"""Modality of an intensive-care stay → its variables."""
_VARIABLES_BY_UNIT = {
    "/min": "hr resp",
    "°C": "temp",
    "mmHg": "sbp dbp map pco2 po2",
    "%": "o2sat bnd lymph mchc methb neut fio2",
    "g/dL": "alb hgb",
    "IU/L": "alp alt ast ck",
    "mEq/L": "be bicar cl k na",
    "mg/dL": "bili bili_dir bun ca crea fgn glu mg phos",
    "mmol/L": "cai lact",
    "ng/mL": "ckmb tnt",
    "mg/L": "crp",
    "1": "inr_pt ph",
    "pg": "mch",
    "fL": "mcv",
    "10^3/uL": "plt wbc",
    "s": "ptt",
    "mL": "urine",
}
UNITS = {variable: unit for unit, variables in _VARIABLES_BY_UNIT.items() for variable in variables.split()}
"""Variable of an intensive-care stay → its unit."""
COVID_LABS = ("crp", "d_dimer", "factor_xii", "ldh", "lymphocytes", "neutrophils", "pco2", "po2")
"""Laboratory values that go with a chest film, measured once: a series of one hour."""
PERSON = ("age", "female")
"""Years, and 1 or 0: known of a patient before anything is measured."""
Stays = Float32[np.ndarray, "example hour channel"]
PerVariable = Float64[np.ndarray, " variable"]
CLIP = 5.0
"""Bound of a z-score: charting artefacts (a pressure of 300, a temperature of 0) must not drown the rest."""


class TimeSeriesModality(Modality):
    """Variables by the hour since admission; a sample is ``[hour, values then observed flags]``."""

    units: ClassVar[str] = "clinical units per variable"
    variables: tuple[str, ...] = Field(min_length=1)
    num_hours: int = Field(default=24, gt=0)

    @property
    def sample_shape(self) -> tuple[int, int]:
        """``(num_hours, 2 · variables)``."""
        return self.num_hours, 2 * len(self.variables)

    @property
    def num_channels(self) -> int:
        """One channel per variable; flags are not normalised."""
        return len(self.variables)

    def prepare(self, raw: Shaped[np.ndarray, "..."]) -> Float32[np.ndarray, "hour channel"]:
        """Keep the first hours; hours beyond the stay are unobserved. NaN (or infinite) means not observed."""
        count = len(self.variables)
        if raw.ndim != 2 or raw.shape[1] != count:
            what = f"the series has shape {raw.shape}; [hours, {count} variables] is needed"
            raise DataError(what, where=self.name, hint=f"the variables are {', '.join(self.variables)}")
        kept = raw[: self.num_hours]
        observed = np.isfinite(kept)
        sample = np.zeros(self.sample_shape, np.float32)
        sample[: len(kept), :count] = np.where(observed, kept, 0.0)
        sample[: len(kept), count:] = observed
        return sample

    def moments(self, samples: Stays) -> Moments:
        """Return count, sum and sum of squares of the observed values, per variable."""
        count = len(self.variables)
        observed = samples[..., count:].sum((0, 1), dtype=np.float64)
        values = samples[..., :count].astype(np.float64)  # zero where unobserved, so it adds nothing
        return Moments(observed, values.sum((0, 1)), (values**2).sum((0, 1)))

    def normalise(self, samples: Stays, mean: PerVariable, std: PerVariable) -> Stays:
        """Return z-scores clipped to ±:data:`CLIP`, 0 where unobserved; flags stay as they are."""
        count = len(self.variables)
        flags = samples[..., count:]
        scores = ((samples[..., :count] - mean) / std).clip(-CLIP, CLIP) * flags
        return np.concatenate([scores.astype(np.float32), flags], axis=-1)

    def extremes(self, samples: Stays) -> tuple[PerExample, PerExample] | None:
        """Return the lowest and the highest observed value of a stay; age and sex are not measured, so they have none.

        They are as ``samples`` are: in clinical units, or z-scores of them.
        """
        if self.variables == PERSON:
            return None
        count = len(self.variables)
        observed = samples[..., count:] > 0
        values = samples[..., :count].astype(np.float64)
        low = np.where(observed, values, np.inf).min(1)
        high = np.where(observed, values, -np.inf).max(1)
        return np.where(np.isfinite(low), low, np.nan), np.where(np.isfinite(high), high, np.nan)

    def measures(self, samples: Stays) -> dict[str, Float64[np.ndarray, " example"]]:
        """Return ``variable.kind`` → value per stay: high, low, first, last, mean, sum, count, change.

        The change is the last value minus the first, where at least two hours have one.
        """
        size = len(self.variables)
        made: dict[str, Float64[np.ndarray, " example"]] = {}
        for number, variable in enumerate(self.variables):
            seen = samples[..., size + number] > 0
            values = np.where(seen, samples[..., number], np.nan).astype(np.float64)
            count, rows, last = seen.sum(1), np.arange(len(seen)), seen.shape[1] - 1 - seen[:, ::-1].argmax(1)
            none = count == 0
            first, final, total = values[rows, seen.argmax(1)], values[rows, last], np.where(seen, values, 0.0).sum(1)
            made |= {
                f"{variable}.high": np.where(none, np.nan, np.where(seen, values, -np.inf).max(1)),
                f"{variable}.low": np.where(none, np.nan, np.where(seen, values, np.inf).min(1)),
                f"{variable}.first": first,
                f"{variable}.last": final,
                f"{variable}.mean": np.where(none, np.nan, total / np.maximum(count, 1)),
                f"{variable}.sum": np.where(none, np.nan, total),
                f"{variable}.count": count.astype(np.float64),
                f"{variable}.change": np.where(count > 1, final - first, np.nan),
            }
        return made

    @property
    def measure_units(self) -> dict[str, str]:
        """Variable → unit, of an intensive-care stay's."""
        return {name: UNITS[name] for name in self.variables if name in UNITS}


class LabPercentiles(Modality):
    """Percentiles of 50 blood tests, then a flag for each that was measured (Saporta et al. 2024: Symile-MIMIC).

    Percentiles are those of the training set's distribution; an unmeasured test carries its mean. They are on
    one scale already, so nothing is normalised and no hospital sends moments.
    """

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


MODALITIES: tuple[Modality, ...] = (
    *(TimeSeriesModality(name=name, variables=variables) for name, variables in ICU.items()),
    TimeSeriesModality(name="covid-labs", variables=COVID_LABS, num_hours=1),
    TimeSeriesModality(name="person", variables=PERSON, num_hours=1),
    LabPercentiles(),
)
