"""Settings of the scores: resamples, intervals, comparisons."""

from __future__ import annotations

from pydantic import Field

from medfed.study.parts import SettingsModel


class BootstrapSettings(SettingsModel):
    """How intervals are made.

    Attributes:
        num_resamples: bootstrap resamples.
        level: coverage of the interval.
        max_undefined: largest share of resamples that may be undefined before the interval is withheld.
    """

    num_resamples: int = Field(default=1000, ge=2)
    level: float = Field(default=0.95, gt=0, lt=1)
    max_undefined: float = Field(default=0.1, ge=0, lt=1)


class EvaluationSettings(BootstrapSettings):
    """How a study's predictions are scored.

    Attributes:
        comparisons: pairs (model, baseline) compared on the same resamples wherever a task has both.
        watch_every: rounds between looks at the development set; 0 never looks.
        max_new_tokens: longest answer to an open question, in the LLM's tokens.
    """

    comparisons: tuple[tuple[str, str], ...] = (("fedkim", "federated"),)
    watch_every: int = Field(default=1, ge=0)
    max_new_tokens: int = Field(default=16, gt=0)
