"""Example cards: what a test example looks like, what was asked, what the models said, and which experts spoke."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from medfed.report.names import model_order, model_title, number, ordered, task_title
from medfed.report.read import RunFiles
from medfed.report.records import ExampleCard, Number, View
from medfed.report.svg import coordinate, tag

TRACE_WIDTH, TRACE_HEIGHT = 300.0, 84.0
LINE_WIDTH, LINE_HEIGHT = 240.0, 24.0
BOX_SECONDS, BOX_MILLIVOLTS = 0.2, 0.5
"""One large box of ECG paper."""


@dataclass(frozen=True)
class Said:
    """What one model said: the answer, and how probable it found it; generated text has no probability."""

    model: str
    style: str
    answer: str
    probability: str
    right: bool


@dataclass(frozen=True)
class Card:
    """One example, ready to print."""

    title: str
    question: str
    gold: str
    said: list[Said]
    experts: list[tuple[str, str]]
    image: str
    trace: Markup | None
    lines: list[tuple[str, Markup, str]]
    withheld: str


def example_cards(run: RunFiles) -> list[Card]:
    """The run's cards, tasks in the study's order."""
    by_task = {task: [card for card in run.cards.cards if card.task == task] for task in _tasks(run)}
    return [_card(card, task_title(run, task)) for task, cards in by_task.items() for card in cards]


def _tasks(run: RunFiles) -> list[str]:
    return ordered(run, [card.task for card in run.cards.cards])


def _card(card: ExampleCard, title: str) -> Card:
    views = {kind: [view for view in card.views if view.kind == kind] for kind in ("image", "trace", "line")}
    return Card(
        title,
        card.question,
        card.gold,
        _said(card),
        [(str(expert.expert), number(expert.weight, 2)) for expert in card.experts],
        next((view.png for view in views["image"]), ""),
        next((trace_picture(view) for view in views["trace"]), None),
        [(view.title, line_picture(view), range_text(view)) for view in views["line"]],
        card.withheld or "",
    )


def _said(card: ExampleCard) -> list[Said]:
    rows = []
    for model in model_order([*card.probabilities, *card.generated]):
        answers = {text: p for text, p in card.probabilities.get(model, {}).items() if p is not None}
        if model in card.generated:
            text = card.generated[model]
            rows.append(Said(model_title(model), model, text, "", _same(text, card.gold)))
        elif answers:
            text = max(answers, key=lambda answer: answers[answer])
            rows.append(Said(model_title(model), model, text, number(answers[text], 2), _same(text, card.gold)))
    return rows


def _same(text: str, gold: str) -> bool:
    return text.strip().casefold() == gold.strip().casefold()


def trace_picture(view: View) -> Markup:
    """Draw an ECG on its paper; the voltage range is the trace's own, rounded outwards to whole boxes."""
    points = [(index / max(len(view.values) - 1, 1), value) for index, value in enumerate(view.values)]
    known = [value for _, value in points if value is not None] or [0.0]
    low = BOX_MILLIVOLTS * int(min(0.0, *known) / BOX_MILLIVOLTS - 1)
    high = BOX_MILLIVOLTS * int(max(0.0, *known) / BOX_MILLIVOLTS + 1)

    def y(value: float) -> float:
        return TRACE_HEIGHT * (high - value) / (high - low)

    boxes = round(view.seconds / BOX_SECONDS) or 1
    steps = round((high - low) / BOX_MILLIVOLTS)
    paper = [
        tag("line", x1=x, x2=x, y1=0, y2=TRACE_HEIGHT, class_="paper")
        for x in (TRACE_WIDTH * box / boxes for box in range(boxes + 1))
    ]
    paper += [
        tag("line", x1=0, x2=TRACE_WIDTH, y1=y(at), y2=y(at), class_="paper")
        for at in (low + BOX_MILLIVOLTS * step for step in range(steps + 1))
    ]
    lines = _polylines([(x * TRACE_WIDTH, None if value is None else y(value)) for x, value in points], "pulse")
    what = f"{view.title}: {view.seconds:g} s from {number(min(known), 2)} to {number(max(known), 2)} {view.unit}"
    box = f"0 0 {coordinate(TRACE_WIDTH)} {coordinate(TRACE_HEIGHT)}"
    return tag("svg", *paper, *lines, viewBox=box, role="img", aria_label=what, class_="chart trace")


def line_picture(view: View) -> Markup:
    """Draw one variable by the hour: a dot per measurement, a line through consecutive ones; nothing if none."""
    known = [value for value in view.values if value is not None]
    if not known:
        return Markup()
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    width = (LINE_WIDTH - 6) / max(len(view.values) - 1, 1)
    points = [
        (3 + index * width, None if value is None else LINE_HEIGHT - 4 - (LINE_HEIGHT - 8) * (value - low) / span)
        for index, value in enumerate(view.values)
    ]
    dots = [tag("circle", cx=x, cy=y, r=1.5, class_="spot") for x, y in points if y is not None]
    what = f"{view.title} by hour, {len(known)} of {len(view.values)} hours measured, from {low:g} to {high:g}"
    box = f"0 0 {coordinate(LINE_WIDTH)} {coordinate(LINE_HEIGHT)}"
    return tag("svg", *_polylines(points, "pulse"), *dots, viewBox=box, role="img", aria_label=what, class_="chart")


def range_text(view: View) -> str:
    """Say in words from where to where the values go."""
    known: list[float] = [value for value in view.values if value is not None]
    if not known:
        return "not measured"
    return f"{min(known):g} to {max(known):g}" if min(known) < max(known) else f"{known[0]:g}"


def _polylines(points: list[tuple[float, Number]], style: str) -> list[Markup]:
    """Lines through runs of known points; a gap stays a gap."""
    runs = [list(part) for known, part in groupby(points, key=lambda point: point[1] is not None) if known]
    return [
        tag("polyline", points=" ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in part), class_=style)
        for part in runs
        if len(part) > 1
    ]
