"""Who holds what, as a picture: a row of stacked bars per task, a bar per client, a colour per class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from medfed.report.names import natural
from medfed.report.svg import tag

ROW, BAR, LEFT, WIDTH, TOP = 96.0, 64.0, 150.0, 760.0, 40.0
COLOURS = ("#0a5ea8", "#e0862f", "#2f9e83", "#a13d7f", "#7a7cd0", "#b59f0f", "#c0504d", "#69727d")
"""Colours of classes, in turns; dark enough on white."""


def partition_picture(partition: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Return an SVG of a partition record (``partition.json``): examples per client, task and class."""
    held = class_counts(partition)
    clients = sorted(held, key=natural)
    tasks = list(dict.fromkeys(task for own in held.values() for task in own))
    marks = [tag("text", _headline(partition, len(clients)), x=16.0, y=24.0, font_size=15, font_weight=600)]
    for row, task in enumerate(tasks):
        counts = {client: held[client].get(task, {}) for client in clients}
        marks.append(_task_row(titles.get(task, task), counts, TOP + row * ROW))
    height = TOP + ROW * len(tasks) + 12
    style = {"font_family": "system-ui, sans-serif", "font_size": 11, "fill": "#1b1f24"}
    page = tag("rect", x=0, y=0, width=WIDTH, height=height, fill="#ffffff")
    return str(tag("svg", page, *marks, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {height}", **style))


def partition_rows(partition: Mapping[str, Any]) -> list[tuple[str, str, int, str]]:
    """Return (client, task, examples, examples by class in words) for a table."""
    return [
        (client, task, sum(counts.values()), ", ".join(f"{name} {count}" for name, count in counts.items() if count))
        for client, own in sorted(class_counts(partition).items(), key=lambda item: natural(item[0]))
        for task, counts in own.items()
    ]


def class_counts(partition: Mapping[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    """Return client → task → class → examples; all examples of a site that does not tell its classes are one class."""
    untold = {
        client: {task: {"examples": count} for task, count in own.items()}
        for client, own in partition.get("num_examples", {}).items()
    }
    return {**untold, **partition["counts"]}


def _headline(partition: Mapping[str, Any], num_clients: int) -> str:
    left_out = len(partition.get("left_out", ()))
    small = f", {left_out} too small left out" if left_out else ""
    who = f"{partition['scheme']} partition, {num_clients} clients{small}"
    return f"{who}, seed {partition['seed']}, hash {partition['hash']}"


def _task_row(title: str, counts: Mapping[str, Mapping[str, int]], top: float) -> Markup:
    classes = list(dict.fromkeys(name for own in counts.values() for name in own))
    largest = max((sum(own.values()) for own in counts.values()), default=0) or 1
    place = (WIDTH - LEFT - 16) / max(len(counts), 1)
    foot = top + BAR + 12
    marks = [tag("text", title[:24], x=16.0, y=top + 24, font_weight=600)]
    for number, name in enumerate(classes[:4]):
        marks.append(tag("rect", x=16.0, y=top + 32 + 12 * number, width=8, height=8, fill=_colour(number)))
        marks.append(tag("text", name[:20], x=28.0, y=top + 40 + 12 * number, font_size=9))
    for index, (client, own) in enumerate(counts.items()):
        level, left = foot, LEFT + index * place
        for number, name in enumerate(classes):
            height = own.get(name, 0) / largest * BAR
            level -= height
            hover = tag("title", f"{client}: {name} {own.get(name, 0)}")
            box = {"x": left + place * 0.12, "y": level, "width": place * 0.76, "height": height}
            marks.append(tag("rect", hover, fill=_colour(number), **box))
        middle = left + place / 2
        marks.append(tag("text", str(sum(own.values())), x=middle, y=level - 3, text_anchor="middle", font_size=9))
        if len(counts) <= 16:
            marks.append(tag("text", client[:12], x=middle, y=foot + 11, text_anchor="middle", font_size=9))
    return Markup("").join(marks)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
