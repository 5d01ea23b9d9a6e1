"""When the simulated ICU measures what: vital signs with gaps, and laboratory panels that are ordered together.

The sicker the patient, the more often blood is drawn, and a test for an organ is ordered when that organ fails: what
was measured is informative, as in the real tables, whose observed shares per variable and database this follows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int

from medfed.datasets.twins.icu_stays import HEART, INFLAMMATION, LIVER, LUNG, SHOCK

DATABASES = ("eicu_twin", "mimic_twin")


class Panel(NamedTuple):
    """Variables measured together.

    Attributes:
        variables: their names.
        share: share of stays in which it is measured at all, per database.
        rate: times per hour in such a stay, per database.
        organ: burden that makes it likelier, or None.
    """

    variables: tuple[str, ...]
    share: tuple[float, float]
    rate: tuple[float, float]
    organ: int | None = None


PANELS = (
    Panel(("temp",), (0.96, 0.96), (0.29, 0.29)),
    Panel(("bicar", "bun", "cl", "crea", "k", "na", "glu", "ca"), (0.93, 0.99), (0.067, 0.085)),
    Panel(("glu",), (0.6, 0.4), (0.2, 0.06)),
    Panel(("k",), (0.15, 0.1), (0.07, 0.06)),
    Panel(("hgb", "mch", "mchc", "mcv", "plt", "wbc"), (0.89, 0.99), (0.057, 0.075)),
    Panel(("lymph", "neut"), (0.58, 0.44), (0.052, 0.045), INFLAMMATION),
    Panel(("bnd",), (0.09, 0.17), (0.045, 0.05), INFLAMMATION),
    Panel(("alb", "alp", "alt", "ast", "bili"), (0.47, 0.36), (0.048, 0.052), LIVER),
    Panel(("bili_dir",), (0.07, 0.08), (0.045, 0.04), LIVER),
    Panel(("be", "pco2", "ph", "po2"), (0.36, 0.61), (0.085, 0.14), LUNG),
    Panel(("lact",), (0.27, 0.48), (0.075, 0.1), SHOCK),
    Panel(("methb",), (0.1, 0.01), (0.09, 0.06), LUNG),
    Panel(("cai",), (0.03, 0.31), (0.1, 0.11), SHOCK),
    Panel(("inr_pt",), (0.35, 0.87), (0.055, 0.08), LIVER),
    Panel(("ptt",), (0.23, 0.87), (0.065, 0.084)),
    Panel(("fgn",), (0.05, 0.11), (0.06, 0.07), LIVER),
    Panel(("mg",), (0.56, 0.97), (0.06, 0.087)),
    Panel(("phos",), (0.33, 0.94), (0.06, 0.078)),
    Panel(("ck",), (0.15, 0.46), (0.073, 0.065), HEART),
    Panel(("ckmb",), (0.1, 0.28), (0.08, 0.07), HEART),
    Panel(("tnt",), (0.06, 0.34), (0.08, 0.062), HEART),
    Panel(("crp",), (0.04, 0.02), (0.05, 0.04), INFLAMMATION),
    Panel(("fio2",), (0.49, 0.48), (0.24, 0.22), LUNG),
    Panel(("urine",), (0.72, 0.94), (0.27, 0.65)),
)
MONITORED = {  # share of stays, share of hours, per database
    ("hr",): ((0.98, 0.96), (0.965, 0.92)),
    ("resp",): ((0.89, 0.96), (0.945, 0.91)),
    ("sbp", "dbp", "map"): ((0.97, 0.96), (0.91, 0.905)),
    ("o2sat",): ((0.98, 0.96), (0.915, 0.89)),
}
HOURS_COLLECTED = (2.2, 0.9)
"""Hours of urine in one entry, per database."""


def observed(
    database: Int[np.ndarray, " stay"],
    burden: Float64[np.ndarray, "stay hour burden"],
    rng: np.random.Generator,
) -> dict[str, Bool[np.ndarray, "stay hour"]]:
    """Return variable → whether each hour has a measurement; ``database`` is 0 or 1 per stay."""
    stays, hours, _ = burden.shape
    seen: dict[str, Bool[np.ndarray, "stay hour"]] = {}
    for variables, (share, coverage) in MONITORED.items():
        connected = rng.random((stays, 1)) < np.take(share, database)[:, None]
        seen |= dict.fromkeys(
            variables, connected & (rng.random((stays, hours)) < np.take(coverage, database)[:, None])
        )
    severity = burden.mean(2) / 0.35  # about 1 on average
    for panel in PANELS:
        drawn = _drawn(panel, database, burden, severity, rng)
        for variable in panel.variables:
            seen[variable] = seen[variable] | drawn if variable in seen else drawn
    return seen


def _drawn(
    panel: Panel,
    database: Int[np.ndarray, " stay"],
    burden: Float64[np.ndarray, "stay hour burden"],
    severity: Float64[np.ndarray, "stay hour"],
    rng: np.random.Generator,
) -> Bool[np.ndarray, "stay hour"]:
    """Draws at near-regular intervals: one whenever the accumulated rate passes a whole number."""
    stays, hours = severity.shape
    odds = np.log(np.take(panel.share, database) / (1 - np.take(panel.share, database)))
    if panel.organ is not None:
        odds = odds + 0.7 * (burden[:, :24, panel.organ].mean(1) - 0.45)
    ordered = rng.random(stays) < 1 / (1 + np.exp(-odds - 0.3 * (severity[:, :24].mean(1) - 1)))
    pace = rng.lognormal(-0.1, 0.4, (stays, hours)) * (0.7 + 0.3 * severity)
    pace[:, 0] *= 3  # bloods on admission
    passed = np.floor(np.cumsum(np.take(panel.rate, database)[:, None] * pace, axis=1) + rng.random((stays, 1)))
    drawn: np.ndarray = (np.diff(passed, axis=1, prepend=0) > 0) & ordered[:, None]
    return drawn
