"""Test examples to look at."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medfed.records.schema.base import File, Number, Record


class View(Record):
    """A picture of one modality of an example: an 8-bit PNG in base64, or values over time."""

    kind: Literal["image", "trace", "line"]
    title: str = ""
    unit: str = ""
    png: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/=]*$")] = ""
    seconds: float = 0.0
    values: tuple[Number, ...] = ()


class ExpertWeight(Record):
    """An expert, numbered from 1, and its share of the mixture."""

    expert: int
    weight: float


class ExampleCard(Record):
    """One test example: its views, its question, every model's response, and what is true.

    ``cut`` names the models whose answer in words was still running at its limit. ``withheld`` says why an example of
    real data shows nothing of this.
    """

    task: str
    example: str = ""
    question: str = ""
    gold: str = ""
    probabilities: dict[str, dict[str, Number]] = {}
    generated: dict[str, str] = {}
    cut: tuple[str, ...] = ()
    experts: tuple[ExpertWeight, ...] = ()
    views: tuple[View, ...] = ()
    withheld: str | None = None


class CardFile(File, path="cards.json"):
    """``cards.json``: test examples, and the rule that chose them."""

    rule: str = ""
    cards: tuple[ExampleCard, ...] = ()
