"""The parts of a report page: sections of tables, charts and text, for one template to print."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import NamedTuple

from markupsafe import Markup


class Track(NamedTuple):
    """A value, its interval and chance on a common axis, as percentages of its length; None where there is none."""

    value: float | None
    low: float | None
    high: float | None
    chance: float | None


class Cell(NamedTuple):
    """A cell of a table, with CSS classes.

    The interval is printed small after the text. ``heat`` is the shade, as a percentage of the scale's top. ``flag`` is
    the reason for a mark, ``marks`` are signs of significance, and ``track`` is drawn in place of text.
    """

    text: str = ""
    interval: str = ""
    style: str = "num"
    heat: int | None = None
    flag: str = ""
    marks: str = ""
    track: Track | None = None


class Row(NamedTuple):
    """A line of a table; ``style`` is the model's, ``note`` and ``flag`` follow the head, ``tip`` is on hover."""

    head: str
    cells: Sequence[Cell | str]
    style: str = ""
    note: str = ""
    flag: str = ""
    tip: str = ""


class Group(NamedTuple):
    """Rows under one heading, with a verdict at its right end."""

    rows: Sequence[Row]
    title: str = ""
    note: str = ""
    verdict: Cell | None = None


class Column(NamedTuple):
    """The head of a column; by default of numbers."""

    title: str
    note: str = ""
    style: str = "num"


class Table(NamedTuple):
    """A table under a caption; its first column is that of the rows' heads. ``label`` names it for screen readers.

    ``kind`` is a CSS class: ``results``, ``metrics``, ``matrix``, ``lines`` or ``heat``. ``spans`` are titles over
    several columns, with their number. With ``toggle`` a switch brings the intervals.
    """

    label: str
    columns: Sequence[Column]
    groups: Sequence[Group]
    kind: str = "metrics"
    caption: str = ""
    spans: Sequence[tuple[str, int]] = ()
    toggle: bool = False


class Legend(NamedTuple):
    """One entry of a legend: text and CSS class."""

    text: str
    style: str


class Figure(NamedTuple):
    """A titled picture."""

    title: str
    picture: Markup
    note: str = ""
    legend: Sequence[Legend] = ()


class Figures(NamedTuple):
    """Pictures side by side; ``layout`` is a CSS class."""

    figures: Sequence[Figure]
    legend: Sequence[Legend] = ()
    layout: str = ""
    captions: bool = True


class Text(NamedTuple):
    """A paragraph with a CSS class, or a heading (``h3``)."""

    text: str
    style: str = ""


class Pairs(NamedTuple):
    """Names and values."""

    rows: Sequence[tuple[str, str]]
    style: str = ""


class Items(NamedTuple):
    """A list of sentences."""

    items: Sequence[str]


class Details(NamedTuple):
    """Parts that a click unfolds."""

    title: str
    parts: Sequence[Part]
    unfolded: bool = False


class Card(NamedTuple):
    """A framed box: of a dataset its facts, of a test example its views and the answers to its question."""

    title: str
    parts: Sequence[Part]
    image: str = ""
    trace: str = ""
    series: Sequence[tuple[str, Markup, str]] = ()
    question: str = ""
    answers: Sequence[tuple[str, Cell]] = ()


class Cards(NamedTuple):
    """Boxes side by side; ``style`` is a CSS class."""

    cards: Sequence[Card]
    style: str = ""


Part = Table | Figures | Text | Pairs | Items | Details | Cards
"""A section holds these; the template prints each by the name of its class."""


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


class Page(NamedTuple):
    """A report; ``kind`` stands above its name, ``origin`` says where its numbers come from."""

    name: str
    kind: str
    sections: Sequence[Section]
    origin: str
    verdicts: Sequence[str] = ()
    description: str = ""
    banners: Sequence[Banner] = ()
    facts: Sequence[tuple[str, str]] = ()


def columns(*titles: str, style: str = "num") -> list[Column]:
    """Return heads of columns that hold numbers, or with another style text."""
    return [Column(title, style=style) for title in titles]


def when(rows: Sized, *parts: Part) -> list[Part]:
    """Return ``parts`` where there are ``rows``, else nothing."""
    return list(parts) if rows else []
