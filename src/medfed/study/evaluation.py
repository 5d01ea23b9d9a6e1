"""Settings of the scores: resamples, intervals, comparisons."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medfed.study.parts import SettingsModel

ExaminationName = Literal["found", "sample", "mmlu-medical", "medmcqa", "medqa", "pubmedqa", "medquad"]
"""Sets of :data:`medfed.datasets.examinations.EXAMINATIONS`; ``found`` stands for all that are there."""


class BootstrapSettings(SettingsModel):
    """How intervals are made."""

    num_resamples: int = Field(default=1000, ge=2)  # bootstrap resamples
    level: float = Field(default=0.95, gt=0, lt=1)  # coverage of the interval
    # largest share of resamples that may be undefined before the interval is withheld
    max_undefined: float = Field(default=0.1, ge=0, lt=1)


class RetentionSettings(SettingsModel):
    """Examinations without patients that tell what the LLM kept, before the first and after the last injection.

    They are looked for below ``--data-root`` and ``roots``; the sample is in the package.
    """

    # none examines nothing; `found` stands for the sample and every set that is there
    sets: tuple[ExaminationName, ...] = ("sample",)
    num_questions: int = Field(default=150, gt=1)  # of every set, always the same ones
    every: int = Field(default=0, ge=0)  # rounds between looks in the meantime; 0 has none
    roots: tuple[str, ...] = ()  # further folders that hold sets


class EvaluationSettings(BootstrapSettings):
    """How a study's predictions are scored."""

    # pairs (model, baseline) compared on the same resamples wherever a task has both
    comparisons: tuple[tuple[str, str], ...] = (("fedkim", "federated"),)
    watch_every: int = Field(default=1, ge=0)  # rounds between looks at the development set; 0 never looks
    # what else answers the test questions of an injected LLM: reused heads, a count of abnormal values, the LLM without
    # the patient; `answers` puts some questions negated and in other words
    controls: tuple[Literal["reuse", "count", "blind", "answers"], ...] = ("reuse", "count", "blind", "answers")
    num_rephrased: int = Field(default=100, gt=0)  # test examples a task that are questioned in other words
    max_new_tokens: int = Field(default=16, gt=0)  # longest answer to an open question, in the LLM's tokens
    retention: RetentionSettings = RetentionSettings()  # what the LLM still knows
