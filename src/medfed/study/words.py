"""Settings of the questions to an LLM without patients: findings, clinical pictures, and how answers become weights.

A study names files: those in the package (``icu``, ``ecg``) or its own, relative to the study. Their content becomes
part of the study, so a run needs no file again, and other content is another run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import partial
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from medfed.core.rules import Amount, Rule
from medfed.study.parts import SettingsModel

SHIPPED = "medfed.findings"
"""Package whose folders ``findings`` and ``pictures`` hold the files that are named without an ending."""
REFERENCES = (
    "pneumonia",
    "heart failure",
    "acute pancreatitis",
    "gastrointestinal bleeding",
    "diabetic ketoacidosis",
    "liver cirrhosis",
    "pulmonary embolism",
    "stroke",
    "rhabdomyolysis",
    "anemia",
    "urinary tract infection",
    "meningitis",
    "adrenal insufficiency",
    "chronic obstructive pulmonary disease",
    "leukemia",
    "malnutrition",
    "hypothermia",
    "opioid overdose",
    "hyperthyroidism",
    "asthma",
)
"""Clinical pictures of many organs: over them a finding's mean is taken."""


class Finding(SettingsModel):
    """A yes-or-no statement about a patient's data, and how it is read off; ``name`` is the statement itself.

    How far ``measure`` lies beyond what is usual says how strongly it holds, upwards if ``above`` is given, downwards
    if ``below`` is. That number, in ``unit``, is the published limit beyond which the statement is true.
    """

    name: str = Field(min_length=1)  # the statement, as the LLM is asked about it: "high creatinine"
    modality: str  # where it is read
    measure: str  # crea.high, crea.change, po2.low / fio2.high
    above: float | None = None  # the statement is true above this value
    below: float | None = None  # or below this one
    unit: str  # of the measure; 1 if it has none
    source: str = Field(min_length=1)  # where the limit is from

    @model_validator(mode="after")
    def _one_limit(self) -> Finding:
        if (self.above is None) == (self.below is None):
            raise ValueError(f"the finding {self.name!r} needs one limit: above = … or below = …")
        Amount(self.measure)
        return self

    @property
    def sign(self) -> float:
        """1 if high values count for the finding, −1 if low ones do."""
        return 1.0 if self.above is not None else -1.0

    @property
    def limit(self) -> float:
        """The published limit."""
        return self.above if self.above is not None else self.below  # type: ignore[return-value]


class PictureSettings(SettingsModel):
    """A clinical picture: a question about a patient that nobody trains, and the rule by which it is judged."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # the task's name
    title: str = ""  # in tables; by default the picture
    picture: str = ""  # as the LLM is asked about it: "kidney failure"; by default the name
    question: str = ""  # by default "Does the patient have {picture}?"
    negation: str = ""  # the opposite question
    paraphrases: tuple[str, ...] = ()  # the question in other words
    dataset: str  # registry name
    modalities: tuple[str, ...] = Field(min_length=1)  # that the question is about
    rule: str  # what is true, by values of the dataset before normalisation
    units: dict[str, str] = Field(default={})  # variable → unit that the rule means; another one is an error
    source: str = Field(min_length=1)  # where the rule is from
    findings: tuple[str, ...] = ()  # findings that may support it; by default all of its modalities

    @model_validator(mode="after")
    def _rule_reads(self) -> PictureSettings:
        read = {name.partition(".")[0] for name in Rule(self.rule).measures}
        if other := sorted(self.units.keys() - read):
            raise ValueError(
                f"units names {other[0]!r}, which the rule does not read; it reads {', '.join(sorted(read))}"
            )
        return self

    @property
    def reads_measures(self) -> bool:
        """Whether the rule reads values, and not codes alone."""
        return bool(Rule(self.rule).measures)


def _declared(kind: str, value: object) -> object:
    """Return what files named in ``value`` declare, in order, each under its name."""
    if not isinstance(value, list | tuple):
        return value
    made: list[object] = []
    for item in value:
        made += _tables(kind, item) if isinstance(item, str) else [item]
    names = [str(item.get("name")) if isinstance(item, Mapping) else getattr(item, "name", "") for item in made]
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise ValueError(f"{kind}: {twice!r} is declared twice; rename one of the two")
    return tuple(made)


def _tables(kind: str, given: str) -> list[dict[str, Any]]:
    """Read one file: shipped, by its name, or the user's. Raises ValueError if it is neither, or not TOML."""
    try:
        text = (
            _shipped(kind, given).read_text("utf-8") if not given.endswith(".toml") else Path(given).read_text("utf-8")
        )
    except (OSError, UnicodeDecodeError) as error:
        what = f"{kind}: no file {given!r}; shipped are {', '.join(shipped_names(kind))}"
        raise ValueError(f"{what}\n  next step: name a shipped one, or a file that ends in .toml") from error
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{kind}: {given} is not valid TOML: {error}") from error
    if wrong := next((name for name, table in tables.items() if not isinstance(table, dict)), None):
        raise ValueError(f"{kind}: {wrong!r} in {given} is no table; write [{wrong}] and its fields below")
    model = _MODELS[kind]
    made = [{"name": name, **table} for name, table in tables.items()]
    for table in made:
        try:
            model.model_validate(table)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            what = first["msg"].removeprefix("Value error, ")
            raise ValueError(f"{kind}: {given}, [{table['name']}]{f', {field}' if field else ''}: {what}") from error
    return made


def shipped_names(kind: str) -> list[str]:
    """Return the names of the package's files of one ``kind``."""
    return sorted(path.name.removesuffix(".toml") for path in (resources.files(SHIPPED) / kind).iterdir())


def _shipped(kind: str, name: str) -> Traversable:
    return resources.files(SHIPPED) / kind / f"{name}.toml"


_MODELS: Mapping[str, type[SettingsModel]] = {
    "findings": Finding,
    "pictures": PictureSettings,
}


class WordsSettings(SettingsModel):
    """How questions are answered by findings that the LLM weighs, without a patient in the LLM."""

    # files of findings that are read off the data
    findings: Annotated[tuple[Finding, ...], BeforeValidator(partial(_declared, "findings"))]
    # files of clinical pictures: unseen tasks, judged by rules
    pictures: Annotated[tuple[PictureSettings, ...], BeforeValidator(partial(_declared, "pictures"))] = ()
    # clinical pictures over which a finding's mean is taken off its weights
    references: tuple[str, ...] = REFERENCES
    # questions that the LLM is asked about a finding and a picture
    wordings: tuple[str, ...] = (
        "Is {finding} a sign of {picture}?",
        "Do patients with {picture} have {finding}?",
    )
    weigh: Literal["strongest", "softplus"] = "strongest"  # keep the strongest weights, or all of them softly
    keep: float = Field(default=0.3, gt=0, le=1)  # share of the findings that `strongest` keeps
    power: float = Field(default=3.0, gt=0)  # of a kept weight: above 1 the strongest count for more
    # of the largest weight; every finding has it on top. It ranks patients in whom nothing that matters was measured
    floor: float = Field(default=0.0, ge=0, le=1)
    # compare with a sentence embedding: similarity in place of an answer, and the finding that is nearest in meaning
    sentences: bool = False
    also: tuple[str, ...] = ()  # further LLMs of `medfed foundation list` that are asked the same, for comparison

    @model_validator(mode="after")
    def _wordings_have_both(self) -> WordsSettings:
        for wording in self.wordings:
            if "{finding}" not in wording or "{picture}" not in wording:
                raise ValueError(f"wordings: {wording!r} needs {{finding}} and {{picture}}")
        if not self.wordings:
            raise ValueError("wordings: at least one question is needed")
        return self


def with_places(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a study's settings with the files of ``[words]`` named as seen from here, not from ``folder``."""
    words = tree.get("words")
    if not isinstance(words, Mapping):
        return dict(tree)
    placed = {
        kind: [str(folder / one) if isinstance(one, str) and one.endswith(".toml") else one for one in words[kind]]
        for kind in _MODELS
        if isinstance(words.get(kind), list)
    }
    return {**tree, "words": {**words, **placed}}
