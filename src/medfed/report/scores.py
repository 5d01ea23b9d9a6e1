"""The report of one benchmark run: every metric of the deployed models beside its bounds, client by client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from medfed.core.files import write_whole
from medfed.report.html import flattened
from medfed.report.names import duration, model_order, model_style, model_title, number, size
from medfed.report.page import render
from medfed.report.read import RunFacts, read_facts, read_sites
from medfed.report.records import JudgedRow
from medfed.report.sites import TITLES, site_failures, site_tables


@dataclass(frozen=True)
class Line:
    """A model in a task's table: a text per metric, and per client its primary metric."""

    title: str
    style: str
    cells: list[tuple[str, str]]
    clients: list[str]
    worst: str


@dataclass(frozen=True)
class TaskTable:
    """A task: its metrics, clients and lines."""

    title: str
    num_examples: int
    num_patients: int
    metrics: list[str]
    primary: str
    clients: list[str]
    lines: list[Line]


def write_scores(run: Path, out: Path) -> None:
    """Build the report of the benchmark run in ``run`` and write it to ``out``, whole or not at all."""
    facts, rows = read_facts(run), read_rows(run)
    data = facts.provenance.data
    made = [item.title or name for name, item in data.items() if item.synthetic]
    at_sites = read_sites(run)
    content = {
        "name": facts.study.get("name", run.parent.name),
        "description": facts.study.get("description", ""),
        "synthetic": f"all {len(data)} datasets" if len(made) == len(data) > 1 else ", ".join(made),
        "facts": list(_facts(facts, run)),
        "tables": task_tables(rows, facts.provenance.titles),
        "sites": site_tables(at_sites, facts.provenance.titles, deployed=True),
        "site_failures": site_failures(at_sites),
        "settings": list(flattened(facts.study)),
    }
    write_whole(out, render("scores.html.jinja", content))


def score_table(run: Path) -> Table:
    """Return every model's primary metric on every task of the run, for the terminal."""
    rows = [row for row in read_rows(run) if row.primary]
    titles = read_facts(run).provenance.titles
    table = Table("task", "metric", "n", title=Text(f"{run.parent.name}: primary metric [95 % CI]"), box=SIMPLE_HEAD)
    models = model_order([row.model for row in rows])
    for model in models:
        table.add_column(Text(TITLES.get(model) or model_title(model)), justify="right")
    table.add_column(Text("worst client"), justify="right")
    for task in dict.fromkeys(row.task for row in rows):
        own = {row.model: row for row in rows if row.task == task}
        first = next(iter(own.values()))
        cells = [" ".join(_cell(own[model])) if model in own else "" for model in models]
        worst = own["federated"]
        table.add_row(
            titles.get(task, task), first.title, str(first.n), *cells, f"{number(worst.worst)} ({worst.worst_client})"
        )
    return table


def read_rows(run: Path) -> list[JudgedRow]:
    """Read the rows of a benchmark run's scores."""
    scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    return [JudgedRow.model_validate(row) for row in scores["rows"]]


def task_tables(rows: list[JudgedRow], titles: dict[str, str]) -> list[TaskTable]:
    """Return one table per task."""
    tables = []
    for task in dict.fromkeys(row.task for row in rows):
        own = [row for row in rows if row.task == task]
        metrics = dict.fromkeys((row.metric, row.title) for row in own)
        primary = next(row for row in own if row.primary)
        lines = [_line(model, own, [name for name, _ in metrics]) for model in model_order([row.model for row in own])]
        tables.append(
            TaskTable(
                titles.get(task, task), primary.n, primary.num_patients, [title for _, title in metrics],
                primary.title, list(primary.clients), lines,
            )
        )  # fmt: skip
    return tables


def _line(model: str, rows: list[JudgedRow], metrics: list[str]) -> Line:
    own = {row.metric: row for row in rows if row.model == model}
    main = next(row for row in own.values() if row.primary)
    return Line(
        TITLES.get(model) or model_title(model),
        model_style(model),
        [_cell(own[name]) for name in metrics],
        [number(value) for value in main.clients.values()],
        number(main.worst),
    )


def _cell(row: JudgedRow) -> tuple[str, str]:
    if row.ci_low is None or row.ci_high is None:
        return number(row.value), ""
    return number(row.value), f"[{number(row.ci_low, 2)}, {number(row.ci_high, 2)}]"


def _facts(facts: RunFacts, run: Path) -> Iterator[tuple[str, str]]:
    algorithm = facts.study.get("algorithm")
    yield "algorithm", str(algorithm.get("name", "")) if isinstance(algorithm, dict) else str(algorithm or "")
    partition = facts.study.get("partition")
    yield "partition", str(partition.get("scheme", "")) if isinstance(partition, dict) else ""
    cost = json.loads((run / "provenance.json").read_text(encoding="utf-8"))["cost"]
    yield "sent to clients", size(int(cost["bytes_down"]))
    yield "sent to the server", size(int(cost["bytes_up"]))
    rounds = facts.study.get("rounds")
    dtype = rounds.get("upload_dtype", "float32") if isinstance(rounds, dict) else "float32"
    if dtype != "float32" and cost.get("upload_error") is not None:
        yield f"error of the mean update in {dtype}", f"{100 * cost['upload_error']:.2g} %"
    yield "training at the clients", duration(cost["train_seconds"])
    yield "largest memory", size(int(cost["peak_memory_bytes"]))
