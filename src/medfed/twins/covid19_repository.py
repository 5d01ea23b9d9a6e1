"""The synthetic twin of the COVID-19 Image Repository: phantoms with ground glass, and values that follow its severity.

Inflammation (CRP, LDH, D-dimer, neutrophils) rises with severity, lymphocytes and the oxygen in the blood fall. Sicker
patients are likelier to need intensive care and to die. Half of the values are not measured, as in the real table. A
value above the assay's range is ``inf``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from medfed.core.rng import numpy_rng
from medfed.datasets.images import write_grey
from medfed.study.data import TwinSpec
from medfed.twins.chest_anatomy import Findings
from medfed.twins.chest_cohorts import Cohort, draw_films

CLINICAL = ("sex", "age", "size", "weight", "admission_offset", "icu_admission_offset", "icu_release_offset")
LABS: dict[str, tuple[float, float, float, int]] = {
    "crp": (25.0, 2.2, 0.7, 0),
    "d-dimer": (0.7, 1.5, 0.7, 1),
    "factor_xii": (75.0, -0.4, 0.3, 0),
    "ldh": (230.0, 0.9, 0.25, 0),
    "lymphocytes": (1.7, -1.1, 0.4, 1),
    "neutrophils": (3.8, 0.9, 0.4, 1),
    "pco2": (38.0, 0.2, 0.2, 0),
    "po2": (80.0, -0.8, 0.4, 0),
}
"""Median at no severity, change of its logarithm at full severity, spread of the logarithm, decimals."""
SHARE_MEASURED, ABOVE_RANGE = 0.55, 6.0
"""Share of values that were measured, and multiple of the healthy median above which the assay says ``inf``."""


def _all_sick(rng: np.random.Generator) -> Findings:
    return Findings(ground_glass=float(rng.uniform(0.05, 1.0)), effusion=0.6 * float(rng.random() < 0.15))


COHORT = Cohort("covid19-repository", _all_sick)


def write_covid19_twin(root: Path, spec: TwinSpec) -> None:
    """Write ``data.csv`` and ``png/``; equal specs give equal bytes."""
    (root / "png").mkdir()
    rows = []
    for film in draw_films(COHORT, spec):
        rng = numpy_rng(spec.seed, "covid19-repository", film.patient)
        image = f"{film.patient:08x}"
        write_grey(root / "png" / f"{image}.png", film.grey)
        row: dict[str, str | int | float | None] = {"patient_id": f"{film.patient + 4096:08x}", "image_id": image}
        row |= dict.fromkeys(CLINICAL) | {"sex": film.sex.lower(), "admission_offset": -int(rng.integers(0, 15))}
        row |= _course(film.findings.ground_glass, spec.difficulty, rng)
        row |= {"modality": "CR" if rng.random() < 0.8 else "DX", "projection": film.view.lower()}
        rows.append(row | _values(film.findings.ground_glass, rng))
    pl.DataFrame(rows, infer_schema_length=None).write_csv(root / "data.csv")


def _course(severity: float, difficulty: float, rng: np.random.Generator) -> dict[str, str | int | float | None]:
    """Say who was taken to intensive care, and who died: the sicker, up to chance."""
    score = severity + 0.3 * difficulty * float(rng.standard_normal())
    icu, died = score > 0.58, score > 0.95
    admitted = -float(rng.integers(0, 6))
    return {
        "icu_admission_offset": admitted if icu else None,
        "icu_release_offset": admitted + float(rng.integers(1, 20)) if icu else None,
        "death_offset": float(rng.integers(0, 12)) if died else None,
    }


def _values(severity: float, rng: np.random.Generator) -> dict[str, str | int | float | None]:
    row: dict[str, str | int | float | None] = {}
    for lab, (median, effect, spread, decimals) in LABS.items():
        value = median * float(np.exp(effect * severity + spread * rng.standard_normal()))
        measured = rng.random() < SHARE_MEASURED
        printed = float("inf") if lab == "d-dimer" and value > ABOVE_RANGE * median else round(value, decimals)
        row[f"{lab}_offset"] = float(rng.choice((-2, -1, 0, 0, 0, 0, 3))) if measured else None
        row[f"{lab}_val"] = printed if measured else None
    return row
