"""Findings read off the data: how strongly each holds for a patient, and whether it is true by its published limit.

The strength of a finding is how far its value lies beyond the median of public patients, in their interquartile ranges,
from 0 to 3. One is added where the statement is true by its published limit. It is NaN where nothing was observed.
Where too few public patients have a value, the published limit stands for the median and for the range. So a rare
value, such as troponin, counts too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from medfed.core.rules import Amount
from medfed.evaluation.abnormality import Usual, degrees, usual
from medfed.study.words import Finding
from medfed.tasks.base import TaskSet

Values = Float[np.ndarray, "example finding"]


def values_of(findings: Sequence[Finding], examples: TaskSet) -> Values:
    """Return what every finding measures, in its unit; NaN where nothing was observed.

    A finding of a modality that the data lacks is NaN throughout. Raises DataError where the data has no such measure.
    """
    columns = [_column(finding, examples) for finding in findings]
    return np.stack(columns, axis=1) if columns else np.zeros((len(examples), 0))


def _column(finding: Finding, examples: TaskSet) -> Float[np.ndarray, " example"]:
    if finding.modality not in examples.data.samples:
        return np.full(len(examples), np.nan)
    return np.asarray(Amount(finding.measure).values(examples.data.measure)[examples.rows])


@dataclass(frozen=True)
class Scale:
    """The usual value of every finding, from public patients or by the published limit."""

    findings: tuple[Finding, ...]
    usual: Usual

    @classmethod
    def of(cls, findings: Sequence[Finding], public: Values) -> Scale:
        """Return the scale of public patients' values; the limits' where too few have one."""
        middle, width = usual(public)
        limits = np.array([finding.limit for finding in findings])
        unknown = np.isnan(middle)
        by_limit = np.where(limits == 0, 1.0, np.abs(limits))
        return cls(tuple(findings), Usual(np.where(unknown, limits, middle), np.where(unknown, by_limit, width)))

    def strengths(self, values: Values) -> Values:
        """Return how strongly every finding holds, 0 to 4; NaN where its value is."""
        beyond = degrees(values, self.usual, np.array([finding.sign for finding in self.findings]))
        return np.asarray(beyond + true_of(self.findings, values))


def true_of(findings: Sequence[Finding], values: Values) -> Values:
    """Return 1 where a finding is true by its published limit, 0 where it is not, NaN where its value is."""
    signs = np.array([finding.sign for finding in findings])
    limits = np.array([finding.limit for finding in findings])
    return np.where(np.isnan(values), np.nan, signs * (values - limits) > 0)
