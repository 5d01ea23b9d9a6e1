"""The run files the report reads, line by line: what a record must have. Fields it does not know are ignored."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
"""A finite number, or None where the run wrote null, NaN or an infinity."""


class Record(BaseModel):
    """A frozen record."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Skipped(Record):
    """An example that could not be decoded."""

    example: str = ""
    where: str = ""
    what: str = ""


class DataFacts(Record):
    """What a run knew of one dataset."""

    title: str = ""
    version: str = ""
    licence: str = "unknown"
    access: str = ""
    citation: str = ""
    note: str = ""
    synthetic: bool = False
    num_examples: int = 0
    num_patients: int = 0
    skipped: list[Skipped] = []
    checksum: str = ""


class Provenance(Record):
    """``provenance.json``."""

    medfed: str = "unknown"
    commit: str | None = None
    dirty: bool | None = None
    python: str = "unknown"
    versions: dict[str, str | None] = {}
    device: str = "unknown"
    threads: int | None = None
    started: str | None = None
    finished: str | None = None
    command: str | list[str] = ""
    data: dict[str, DataFacts] = {}
    foundation: dict[str, object] = {}
    titles: dict[str, str] = {}


class Partition(Record):
    """``partition.json``, without the example ids.

    Sites tell how many examples they have of a task, not of which class: then ``counts`` is empty.
    """

    scheme: str = "unknown"
    seed: int | None = None
    hash: str = ""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    num_examples: dict[str, dict[str, int]] = {}


class ClientRound(Record):
    """One client in one round."""

    client: str
    losses: dict[str, Number] = {}
    num_examples: int = 0
    num_steps: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class FailedClient(Record):
    """One failure in one round."""

    client: str
    phase: str = ""
    reason: str = ""


class Round(Record):
    """A line of ``rounds.jsonl``; ``upload_error`` is the relative error of the mean update by its rounding."""

    round: int
    clients: list[ClientRound] = []
    failures: list[FailedClient] = []
    upload_dtype: str = "float32"
    upload_error: Number = None


class Timing(Record):
    """A line of ``timings.jsonl``."""

    round: int | None = None
    phase: str
    client: str | None = None
    seconds: float


class Development(Record):
    """A line of ``development.jsonl``."""

    round: int
    model: str
    task: str
    auroc: Number = None
    balanced_accuracy: Number = None


class Step(Record):
    """A line of ``injection/steps.jsonl``."""

    round: int
    step: int
    loss: Number = None


class Routing(Record):
    """A line of ``injection/routing.jsonl``."""

    round: int
    alpha: dict[str, list[float]] = {}
    entropy: dict[str, Number] = {}
    total_variation: Number = None


class Prediction(Record):
    """A line of ``predictions/<task>.jsonl``; with ``reference``, that of an open task."""

    target: int
    reference: str | None = None
    scores: dict[str, list[Number]] = {}


class ScoreRow(Record):
    """A row of ``scores.json``; with ``baseline``, a paired difference.

    Rows of open tasks name the ``part`` of the questions; ``answer`` is a constant's text.
    """

    model: str
    task: str
    role: str = "trained"
    metric: str
    baseline: str | None = None
    value: Number = None
    ci_low: Number = None
    ci_high: Number = None
    n: int = 0
    num_positive: int | None = None
    higher_is_better: bool = True
    reason: str | None = None
    single_class: bool = False
    part: str | None = None
    answer: str | None = None
    signature: str | None = None


class ScoreFile(Record):
    """``scores.json``."""

    rows: list[ScoreRow] = []
    differences: list[ScoreRow] = []

    def about(self, *, open_questions: bool) -> ScoreFile:
        """Return the rows of open tasks, or those of closed ones."""
        return ScoreFile(
            rows=[row for row in self.rows if (row.part is not None) == open_questions],
            differences=[row for row in self.differences if (row.part is not None) == open_questions],
        )


class View(Record):
    """What one modality of an example looks like: an 8-bit PNG in base64, or values over time."""

    kind: Literal["image", "trace", "line"]
    title: str = ""
    unit: str = ""
    png: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/=]*$")] = ""
    seconds: float = 0.0
    values: list[Number] = []


class ExpertWeight(Record):
    """An expert, numbered from 1, and its share of the mixture."""

    expert: int
    weight: float


class ExampleCard(Record):
    """One test example: what it looks like, what was asked, what each model said, and what is true."""

    task: str
    question: str = ""
    gold: str = ""
    probabilities: dict[str, dict[str, Number]] = {}
    generated: dict[str, str] = {}
    experts: list[ExpertWeight] = []
    views: list[View] = []
    withheld: str | None = None


class CardFile(Record):
    """``cards.json``."""

    rule: str = ""
    cards: list[ExampleCard] = []


class SiteRow(Record):
    """One model's value of one metric, site by site, as ``sites.json`` has it."""

    task: str
    model: str
    metric: str
    title: str
    primary: bool = False
    pooled: Number = None
    n: int = 0
    sites: dict[str, Number] = {}
    site_n: dict[str, int] = {}
    worst: Number = None
    worst_site: str | None = None


class SiteFile(Record):
    """``sites.json``."""

    rows: list[SiteRow] = []
    failures: list[FailedClient] = []


class JudgedRow(Record):
    """One model's value of one metric, as a benchmark's ``scores.json`` has it."""

    task: str
    model: str
    metric: str
    title: str
    higher_is_better: bool = True
    primary: bool = False
    value: Number = None
    ci_low: Number = None
    ci_high: Number = None
    n: int = 0
    num_patients: int = 0
    clients: dict[str, Number] = {}
    worst: Number = None
    worst_client: str | None = None
    reason: str | None = None
