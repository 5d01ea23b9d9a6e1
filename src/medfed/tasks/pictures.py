"""Clinical pictures: closed questions that nobody trains, judged by a rule on the data before normalisation.

A rule reads the values of the decoded window (an ICU stay's first 24 hours) and the codes of the dataset. A value that
was not measured counts as no.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Shaped
from pydantic import Field

from medfed.core.catalog import MODALITIES
from medfed.core.errors import StudyError
from medfed.core.rules import Rule
from medfed.datasets.decoded import Decoded
from medfed.study.words import PictureSettings
from medfed.tasks.classification import Classification

__all__ = ["Picture", "picture_task"]


class Picture(Classification):
    """Whether a patient has a clinical picture.

    Attributes:
        picture: its name in questions to an LLM: "kidney failure".
        rule: what is true, see :mod:`medfed.core.rules`.
        units: variable → the unit that the rule means.
        source: where the rule is from.
        findings: names of the findings that may support it; empty stands for all of its modalities.
    """

    kind: ClassVar[str] = "picture"
    trainable: ClassVar[bool] = False
    injectable: ClassVar[bool] = False
    picture: str
    rule: str
    units: dict[str, str] = Field(default={})
    source: str
    findings: tuple[str, ...] = ()

    def targets(self, data: Decoded) -> Shaped[np.ndarray, "example *target"]:
        """Return 1 where the rule is true, else 0.

        Raises DataError if the data has no such measure or no codes, StudyError if it has another unit.
        """
        self.check_units()
        return Rule(self.rule).holds(data.measure, data.coded).astype(np.int64)

    def usable(self, data: Decoded) -> Bool[np.ndarray, " example"]:
        """Return that every example belongs to the task: a value that was not measured counts as no."""
        return np.ones(len(data.index), bool)

    def check_units(self) -> None:
        """Raise StudyError where the rule means another unit than the data has."""
        known = {name: unit for one in self.modalities for name, unit in MODALITIES[one].measure_units.items()}
        for variable, unit in self.units.items():
            if known.get(variable, unit) != unit:
                what = f"the rule has {variable} in {unit}, and the data has it in {known[variable]}"
                raise StudyError(what, where=f"picture {self.name!r}", hint="convert the rule's numbers and its unit")


def picture_task(settings: PictureSettings) -> Picture:
    """Return the task of a declared clinical picture."""
    picture = settings.picture or settings.name.replace("-", " ").replace("_", " ")
    return Picture(
        name=settings.name,
        title=settings.title or f"{picture[0].upper()}{picture[1:]}",
        dataset=settings.dataset,
        target=settings.name,
        modalities=settings.modalities,
        question=settings.question or f"Does the patient have {picture}?",
        negation=settings.negation or f"Is the patient free of {picture}?",
        paraphrases=settings.paraphrases or (f"Is there {picture}?", f"Do these findings show {picture}?"),
        task_description=f"Look for {picture}.",
        modality_description=f"The data are {', '.join(settings.modalities)}.",
        picture=picture,
        rule=settings.rule,
        units=settings.units,
        source=settings.source,
        findings=settings.findings,
    )
