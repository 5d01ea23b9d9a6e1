"""The parts of a report page: sections of tables, charts and text, for one template to print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from markupsafe import Markup


class Track(NamedTuple):
    """A value, its interval and chance on a common axis, as percentages of its length; None where there is none."""

    value: float | None
    low: float | None
    high: float | None
    chance: float | None


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what is printed.
        interval: printed small after it.
        style: CSS classes.
        heat: shade, as a percentage of the scale's top.
        flag: the reason for a mark.
        marks: signs of significance.
        track: drawn in place of text.
    """

    text: str = ""
    interval: str = ""
    style: str = "num"
    heat: int | None = None
    flag: str = ""
    marks: str = ""
    track: Track | None = None


@dataclass(frozen=True)
class Row:
    """A line of a table; ``style`` is the model's, ``note`` and ``flag`` follow the head, ``tip`` is on hover."""

    head: str
    cells: Sequence[Cell | str]
    style: str = ""
    note: str = ""
    flag: str = ""
    tip: str = ""


@dataclass(frozen=True)
class Group:
    """Rows under one heading, with a verdict at its right end."""

    rows: Sequence[Row]
    title: str = ""
    note: str = ""
    verdict: Cell | None = None


@dataclass(frozen=True)
class Column:
    """The head of a column; by default of numbers."""

    title: str
    note: str = ""
    style: str = "num"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        label: its name for those who do not see it.
        columns: the first is that of the rows' heads.
        groups: rows, grouped.
        kind: CSS class: ``results``, ``metrics``, ``matrix``, ``lines`` or ``heat``.
        caption: printed above.
        spans: titles over several columns, with their number.
        toggle: whether a switch brings the intervals.
    """

    label: str
    columns: Sequence[Column]
    groups: Sequence[Group]
    kind: str = "metrics"
    caption: str = ""
    spans: Sequence[tuple[str, int]] = ()
    toggle: bool = False
    form: ClassVar[str] = "table"


class Legend(NamedTuple):
    """One entry of a legend: text and CSS class."""

    text: str
    style: str


@dataclass(frozen=True)
class Figure:
    """A titled picture."""

    title: str
    picture: Markup
    note: str = ""
    legend: Sequence[Legend] = ()


@dataclass(frozen=True)
class Figures:
    """Pictures side by side; ``layout`` is a CSS class."""

    figures: Sequence[Figure]
    legend: Sequence[Legend] = ()
    layout: str = ""
    captions: bool = True
    form: ClassVar[str] = "figures"


@dataclass(frozen=True)
class Text:
    """A paragraph with a CSS class, or a heading (``h3``)."""

    text: str
    style: str = ""
    form: ClassVar[str] = "text"


@dataclass(frozen=True)
class Pairs:
    """Names and values."""

    rows: Sequence[tuple[str, str]]
    style: str = ""
    form: ClassVar[str] = "pairs"


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    items: Sequence[str]
    form: ClassVar[str] = "items"


@dataclass(frozen=True)
class Details:
    """Parts that a click unfolds."""

    title: str
    parts: Sequence[Part]
    unfolded: bool = False
    form: ClassVar[str] = "details"


@dataclass(frozen=True)
class Card:
    """A framed box: of a dataset its facts, of a test example its views and the answers to its question."""

    title: str
    parts: Sequence[Part]
    image: str = ""
    trace: Markup = field(default_factory=Markup)
    series: Sequence[tuple[str, Markup, str]] = ()
    question: str = ""
    answers: Sequence[tuple[str, Cell]] = ()


@dataclass(frozen=True)
class Cards:
    """Boxes side by side; ``style`` is a CSS class."""

    cards: Sequence[Card]
    style: str = ""
    form: ClassVar[str] = "cards"


Part = Table | Figures | Text | Pairs | Items | Details | Cards


class Section(NamedTuple):
    """A section of the page; one without parts is left out."""

    anchor: str
    title: str
    parts: Sequence[Part]


class Banner(NamedTuple):
    """A warning at the top: ``warn``, or ``alarm`` where no number counts."""

    title: str
    text: str
    style: str = "warn"


@dataclass(frozen=True)
class Page:
    """A report; ``kind`` stands above its name, ``origin`` says where its numbers come from."""

    name: str
    kind: str
    sections: Sequence[Section]
    origin: str
    verdicts: Sequence[str] = ()
    description: str = ""
    banners: Sequence[Banner] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def text_columns(*titles: str, style: str = "") -> list[Column]:
    """Return heads of columns that hold text."""
    return [Column(title, style=style) for title in titles]


def number_columns(*titles: str) -> list[Column]:
    """Return heads of columns that hold numbers."""
    return [Column(title) for title in titles]


def when(rows: Sized, *parts: Part) -> list[Part]:
    """Return ``parts`` where there are ``rows``, else nothing."""
    return list(parts) if rows else []
