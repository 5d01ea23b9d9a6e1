"""Multi-lead signals: the 12-lead ECG (FedKIM Table 2, EAD and EBD).

A dataset hands over ``[lead, time]`` in millivolts at 100 Hz, leads in the order of :data:`LEADS`. Each lead is
normalised by its mean and spread, pooled over training clients. Nothing is normalised per record, so voltage
(hypertrophy, low voltage) stays visible to the encoder.
"""

from __future__ import annotations

from math import gcd
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Float64, Shaped
from pydantic import Field

from medfed.core.errors import DataError
from medfed.modalities.base import Modality, Moments, PerExample

LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
RAW_HZ = 100
Signals = Float32[np.ndarray, "example lead time"]
PerLead = Float64[np.ndarray, " lead"]


class SignalModality(Modality):
    """A signal of ``length`` samples in time, 10 s by default; raw arrays are resampled from :data:`RAW_HZ`."""

    units: ClassVar[str] = "millivolt"
    name: str = "ecg"
    num_leads: int = Field(default=12, gt=0)
    length: int = Field(default=1000, gt=0)
    sampling_hz: int = Field(default=RAW_HZ, gt=0, le=1000)

    @property
    def sample_shape(self) -> tuple[int, int]:
        """``(num_leads, length)``."""
        return self.num_leads, self.length

    @property
    def num_channels(self) -> int:
        """One channel per lead."""
        return self.num_leads

    def prepare(self, raw: Shaped[np.ndarray, "..."]) -> Float32[np.ndarray, "lead time"]:
        """Fill gaps, resample, and centre the recording in ``length`` samples.

        A missing sample (NaN, infinite) is interpolated linearly within its lead. A lead without any sample is flat
        zero, as a loose electrode records. A longer recording keeps its middle; a shorter one gets the isoelectric line
        (zeros) on both sides.
        """
        if raw.ndim != 2 or raw.shape[0] != self.num_leads or raw.shape[1] == 0:
            what = f"the signal has shape {raw.shape}; [{self.num_leads} leads, time] is needed"
            raise DataError(what, where=self.name, hint="check the record's leads, or set num_leads")
        signal = _without_gaps(raw.astype(np.float64))
        if self.sampling_hz != RAW_HZ:
            from scipy.signal import resample_poly  # noqa: PLC0415 (large; loaded where it is used)

            common = gcd(self.sampling_hz, RAW_HZ)
            signal = resample_poly(signal, self.sampling_hz // common, RAW_HZ // common, axis=1)
        return _centred(signal, self.length).astype(np.float32)

    def moments(self, samples: Signals) -> Moments:
        """Return count, sum and sum of squares per lead."""
        count = np.full(self.num_leads, samples.shape[0] * samples.shape[2], np.float64)
        total = samples.sum((0, 2), dtype=np.float64)
        return Moments(count, total, np.einsum("elt,elt->l", samples, samples, dtype=np.float64))

    def normalise(self, samples: Signals, mean: PerLead, std: PerLead) -> Signals:
        """Return z-scores per lead."""
        scaled = (samples - mean[:, None].astype(np.float32)) / std[:, None].astype(np.float32)
        return scaled.astype(np.float32, copy=False)

    def extremes(self, samples: Signals) -> tuple[PerExample, PerExample]:
        """Return the lowest and the highest voltage of every lead."""
        return samples.min(2).astype(np.float64), samples.max(2).astype(np.float64)

    def measures(self, samples: Signals) -> dict[str, Float64[np.ndarray, " example"]]:
        """Return rhythm, intervals, axis and amplitudes by name (:mod:`medfed.modalities.ecg_measures`).

        Raises StudyError if neurokit2 is not installed.
        """
        from medfed.modalities.ecg_measures import measures_of  # noqa: PLC0415 (only where findings are read)

        return measures_of(samples, self.sampling_hz)


def _without_gaps(signal: Float64[np.ndarray, "lead time"]) -> Float64[np.ndarray, "lead time"]:
    known = np.isfinite(signal)
    if known.all():
        return signal
    time = np.arange(signal.shape[1])
    filled = np.zeros_like(signal)
    for lead, kept in enumerate(known):
        if kept.any():
            filled[lead] = np.interp(time, time[kept], signal[lead, kept])
    return filled


def _centred(signal: Float64[np.ndarray, "lead raw_time"], length: int) -> Float64[np.ndarray, "lead time"]:
    spare = length - signal.shape[1]
    if spare <= 0:
        return signal[:, -spare // 2 : -spare // 2 + length]
    return np.pad(signal, ((0, 0), (spare // 2, spare - spare // 2)))


MODALITIES: tuple[Modality, ...] = (SignalModality(),)
