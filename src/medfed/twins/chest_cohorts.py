"""The cohorts behind the chest X-ray twins, from one model of hospital patients.

Findings come in syndromes, as in patients. A failing heart is large, floods the lungs and leaks into the pleura.
Pneumonia fills a lobe and may leak too; the bedridden collapse a lung base. So tasks of several datasets share causes:
"Lung Opacity" holds consolidation, effusion, oedema and collapse, as in the RSNA challenge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from medfed.core.rng import numpy_rng
from medfed.study.data import TwinSpec
from medfed.twins.chest import render
from medfed.twins.chest_anatomy import Anatomy, Findings, Map, Style


@dataclass(frozen=True)
class Cohort:
    """The patients of one dataset.

    Attributes:
        name: part of the random key.
        diagnose: draws a patient's findings.
        child: children instead of adults.
        aspect: columns per row of the written image.
        second_visits: share of patients with two films.
    """

    name: str
    diagnose: Callable[[np.random.Generator], Findings]
    child: bool = False
    aspect: float = 1.0
    second_visits: float = 0.0


@dataclass(frozen=True)
class Film:
    """One image, and what the dataset's tables say about it.

    Attributes:
        patient: number from 1; visit: number from 0.
        findings: the truth.
        grey: the image in [0, 1].
        opacity: share of lung air replaced, per pixel.
        anatomy: where one-sided findings sit.
    """

    patient: int
    visit: int
    age: int
    sex: str
    view: str
    findings: Findings
    grey: Map
    opacity: Map
    anatomy: Anatomy


def draw_films(cohort: Cohort, spec: TwinSpec) -> Iterator[Film]:
    """Yield the films of ``spec.num_patients`` patients in order; a pure function of its arguments.

    Difficulty 0.5 … 0 makes findings plainer, 0.5 … 1 lets them fade into noise, at 1 altogether.
    """
    shape = (spec.image_size, round(spec.image_size * cohort.aspect))
    for patient in range(1, spec.num_patients + 1):
        rng = numpy_rng(spec.seed, "chest", cohort.name, patient)
        anatomy, findings = Anatomy.draw(rng, child=cohort.child), cohort.diagnose(rng)
        age = int(rng.integers(1, 6)) if cohort.child else int(np.clip(rng.normal(58, 16), 18, 95))
        sex = str(rng.choice(("F", "M")))
        for visit in range(1 + int(rng.random() < cohort.second_visits)):
            style = Style.draw(rng, noise=0.02 + 0.06 * spec.difficulty)
            seen = findings.scaled(1.2 * (1 - spec.difficulty))
            grey, opacity = render(anatomy, seen, style, shape, rng)
            view = "AP" if rng.random() < 0.4 else "PA"
            yield Film(patient, visit, age, sex, view, findings, grey, opacity, anatomy)


def _severity(rng: np.random.Generator) -> float:
    return float(rng.uniform(0.2, 1.0))


def inpatient(rng: np.random.Generator) -> Findings:
    """Draw a hospital patient: heart failure, pneumonia, immobility and aortic disease, each or several or none."""

    def given(chance: float) -> float:
        return _severity(rng) if rng.random() < chance else 0.0

    failure, pneumonia, bedridden, aortic = (rng.random() < chance for chance in (0.28, 0.22, 0.30, 0.16))
    effusion = given(0.65 if failure else 0.35 if pneumonia or bedridden else 0.06)
    return Findings(
        consolidation=given(0.9 if pneumonia else 0.0),
        effusion=effusion,
        atelectasis=given(0.75 if bedridden else 0.4 if effusion else 0.06),
        wide_mediastinum=given(0.95 if aortic else 0.35 if failure else 0.10 if bedridden else 0.03),
        cardiomegaly=given(0.75 if failure else 0.06),
        oedema=given(0.6 if failure else 0.0),
    )


def has_opacity(findings: Findings) -> bool:
    """Whether something stands where air should be."""
    return (
        max(findings.ground_glass, findings.consolidation, findings.effusion, findings.atelectasis, findings.oedema) > 0
    )


def _covid(rng: np.random.Generator) -> Findings:
    if rng.random() >= 0.4:
        return Findings()
    lobar, heart = rng.random() < 0.2, rng.random() < 0.1
    return Findings(
        ground_glass=_severity(rng),
        consolidation=0.5 * _severity(rng) * lobar,
        cardiomegaly=_severity(rng) * heart,
    )


def _screened(rng: np.random.Generator) -> Findings:
    """Half with an opacity; of the rest some are not normal either."""
    kind = rng.random()
    if kind < 0.22:
        return Findings()
    return Findings(cardiomegaly=_severity(rng)) if kind < 0.34 else inpatient(rng)


def _child(rng: np.random.Generator) -> Findings:
    if rng.random() >= 0.55:
        return Findings()
    bacterial = rng.random() < 0.65
    return Findings(
        consolidation=_severity(rng) * bacterial,
        ground_glass=_severity(rng) * (not bacterial),
        effusion=0.6 * _severity(rng) * (bacterial and rng.random() < 0.25),
    )


COVID = Cohort("covid", _covid)
RSNA = Cohort("rsna", _screened)
CHEXPERT = Cohort("chexpert", inpatient, aspect=1.22, second_visits=0.08)
NIH = Cohort("nih", inpatient, second_visits=0.15)
VQA_RAD = Cohort("vqa-rad", inpatient)
SLAKE = Cohort("slake", inpatient)
PAEDIATRIC = Cohort("paediatric", _child, child=True)
