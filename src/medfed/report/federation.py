"""Holdings and costs of the federation: examples by client, traffic, time, failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from medfed.records.schema import Counts, PartitionFile, Round, Timing
from medfed.report.charts import Series, colour, partition_chart, stacked_bars
from medfed.report.html import Cell, Figure, Figures, Group, Legend, Part, Row, Table, Text, columns, when
from medfed.report.run import FEDERATED_LOGS, Run
from medfed.report.text import duration, natural


def federation(run: Run) -> list[Part]:
    """All that is known of the federation."""
    return [*_partition(run), *_by_round(run), *_failures(run)]


def class_counts(partition: PartitionFile) -> Counts:
    """Return client → task → class → examples; the examples of a site that reports no classes are one class."""
    totals = partition.num_examples.items()
    unclassed = {client: {task: {"examples": n} for task, n in counts.items()} for client, counts in totals}
    return {**unclassed, **partition.counts}


def partition_rows(partition: PartitionFile) -> list[tuple[str, str, int, str]]:
    """Return (client, task, examples, examples by class in words) for a table."""
    return [
        (client, task, sum(counts.values()), ", ".join(f"{name} {count}" for name, count in counts.items() if count))
        for client, tasks in sorted(class_counts(partition).items(), key=lambda item: natural(item[0]))
        for task, counts in tasks.items()
    ]


def partition_picture(partition: PartitionFile, titles: Mapping[str, str]) -> str:
    """Return an SVG file of a partition: examples per client, task and class."""
    held = class_counts(partition)
    clients = sorted(held, key=natural)
    tasks = dict.fromkeys(task for counts in held.values() for task in counts)
    small = f", {len(partition.left_out)} too small left out" if partition.left_out else ""
    who = f"{partition.scheme} partition, {len(clients)} clients{small}"
    by_task = {titles.get(task, task): {client: held[client].get(task, {}) for client in clients} for task in tasks}
    return partition_chart(f"{who}, seed {partition.seed}, hash {partition.hash}", by_task)


def rounding(rounds: Sequence[Round]) -> str:
    """How changes of the weights travelled with what error of the mean update, in words; empty if exact."""
    dtypes = sorted({line.upload_dtype for line in rounds} - {"float32"})
    errors = [line.upload_error for line in rounds if line.upload_error is not None]
    form = f"Clients send the change of their weights in {', '.join(dtypes)}"
    if not dtypes or not errors:
        return f"{form}; with this algorithm no weight travels." if dtypes else ""
    middle, most = f"{100 * median(errors):.2g} %", f"{100 * max(errors):.2g} %"
    return f"{form}: the mean update is off by {middle} of its length in the median round, {most} at most."


def _partition(run: Run) -> list[Part]:
    """Counts by client, task and answer; a column's shade is relative to its task's largest cell."""
    held = class_counts(run.partition)
    answers: dict[str, dict[str, None]] = {}
    for counts in held.values():
        for task, by_class in counts.items():
            answers.setdefault(task, {}).update(dict.fromkeys(by_class))
    top = {task: max([1, *(n for counts in held.values() for n in counts.get(task, {}).values())]) for task in answers}
    places, rows = [(task, name) for task, names in answers.items() for name in names], []
    for client in sorted(held, key=natural):
        counted = [(held[client].get(task, {}).get(name, 0), top[task]) for task, name in places]
        rows.append(Row(client, [Cell(str(n), heat=round(100 * n / most)) for n, most in counted]))
    by = "client, task and answer" if run.partition.counts else "client and task"
    caption = f"Private examples by {by} ({run.partition.scheme} partition), shaded against the task's largest cell"
    heads = columns("Client", *(name for _, name in places), style="")
    spans = [(run.title(task), len(names)) for task, names in answers.items()]
    table = Table("Examples by client and class", heads, [Group(rows)], "heat", caption, spans)
    return when(rows, Text("Who holds what", "h3"), table)


def _by_round(run: Run) -> list[Part]:
    """Traffic and time by round, and the phases outside rounds."""
    down = [(float(line.round), sum(c.bytes_down for c in line.clients) / 1e6) for line in run.lines(Round)]
    up = [(float(line.round), sum(c.bytes_up for c in line.clients) / 1e6) for line in run.lines(Round)]
    figures = []
    if any(value for _, value in down + up):
        layers = [Series("server to clients", "c0", down), Series("clients to server", "c1", up)]
        figures.append(_stack("MB by round", "MB", layers, rounding(run.lines(Round))))
    whole = [timing for timing in run.lines(Timing) if timing.client is None]  # a client's line is inside a phase
    rounds, layers, outside = sorted({timing.round for timing in whole if timing.round}), [], ""
    for phase in dict.fromkeys(timing.phase for timing in whole):
        taken = [(timing.round, timing.seconds) for timing in whole if timing.phase == phase]
        by_round = [(float(at), sum(seconds for number, seconds in taken if number == at)) for at in rounds]
        if any(at for at, _ in taken):
            layers.append(Series(phase, colour(len(layers), 0), by_round))
        if seconds := sum(seconds for at, seconds in taken if not at):
            outside += f"{', ' if outside else 'Outside rounds: '}{phase} {duration(seconds)}"
    figures += [_stack("Seconds by round", "Seconds", layers, outside)] if layers else []
    return when(figures, Text("Traffic and time", "h3"), Figures(figures, layout="three"))


def _stack(title: str, unit: str, layers: Sequence[Series], note: str) -> Figure:
    legend = [Legend(layer.name, layer.style) for layer in layers]
    return Figure(title, stacked_bars(layers, "round", unit), note, legend)


def _failures(run: Run) -> list[Part]:
    """Every failure; the round went on without that update."""
    without = run.lines(Round, f"{FEDERATED_LOGS}/{Round.NAME}")
    federations = {"with injection" if without else "local": run.lines(Round), "federated-only": without}
    rows = [
        Row(name, [Cell(text, style="plain") for text in (str(line.round), one.client, one.phase, one.reason)])
        for name, rounds in federations.items()
        for line in rounds
        for one in line.failures
    ]
    heads = columns("Federation", "Round", "Client", "Phase", "Reason", style="")
    table = Table("Failures", heads, [Group(rows)], "lines", "The round went on without these updates")
    none = Text("None: every client answered in every round.")
    return when(run.lines(Round), Text("Failures", "h3"), table if rows else none)
