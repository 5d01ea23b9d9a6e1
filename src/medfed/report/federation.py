"""What the federation cost and who held what: examples by client, traffic, time, failures."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from medfed.report.figures import Figure, Heat, Legend, Series, colour, heat, stacked_bars
from medfed.report.names import natural, task_title
from medfed.report.partition import class_counts
from medfed.report.read import RunFiles
from medfed.report.records import Timing


@dataclass(frozen=True)
class PartitionTable:
    """Examples by client and class; a column's shade is relative to its task's largest cell."""

    tasks: list[tuple[str, list[str]]]
    rows: list[tuple[str, list[Heat]]]


def partition_table(run: RunFiles) -> PartitionTable | None:
    """Counts by client, task and answer; of sites, that do not tell their classes, by site and task."""
    counts = class_counts(run.partition.model_dump())
    if not counts:
        return None
    tasks: dict[str, list[str]] = {}
    for client in counts.values():
        for task, answers in client.items():
            tasks[task] = list(dict.fromkeys([*tasks.get(task, []), *answers]))
    top = {t: max(max(client.get(t, {}).values(), default=0) for client in counts.values()) for t in tasks}
    rows = []
    for name in sorted(counts, key=natural):
        client = counts[name]
        values = [(t, client.get(t, {}).get(answer, 0)) for t, answers in tasks.items() for answer in answers]
        rows.append((name, [heat(float(value), float(top[t]), str(value)) for t, value in values]))
    return PartitionTable([(task_title(run, task), answers) for task, answers in tasks.items()], rows)


def traffic(run: RunFiles) -> Figure | None:
    """Bytes between clients and server by round, in MB."""
    down = [(float(line.round), sum(c.bytes_down for c in line.clients) / 1e6) for line in run.rounds]
    up = [(float(line.round), sum(c.bytes_up for c in line.clients) / 1e6) for line in run.rounds]
    if not any(value for _, value in down + up):
        return None
    layers = [Series("server to clients", "c0", down), Series("clients to server", "c1", up)]
    return Figure("MB by round", stacked_bars(layers, "round", "MB"))


def rounding(run: RunFiles) -> str:
    """How changes of the weights travelled with what error of the mean update, in words; empty if exact."""
    dtypes = sorted({line.upload_dtype for line in run.rounds} - {"float32"})
    if not dtypes:
        return ""
    errors = [line.upload_error for line in run.rounds if line.upload_error is not None]
    form = f"Clients send the change of their weights in {', '.join(dtypes)}"
    if not errors:
        return f"{form}; with this algorithm no weight travels."
    return (
        f"{form}: the mean update is off by {_percent(median(errors))} of its length in the median round, "
        f"{_percent(max(errors))} at most."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def seconds(run: RunFiles) -> tuple[Figure | None, list[Legend], list[tuple[str, float]]]:
    """Seconds by round and phase, and the phases outside rounds; a client's line is inside a phase and adds nothing."""
    whole = [timing for timing in run.timings if timing.client is None]
    inside = [timing for timing in whole if timing.round]
    rounds = sorted({timing.round for timing in inside if timing.round})
    layers = [
        Series(phase, colour(index, 0), [(float(number), _seconds(inside, phase, number)) for number in rounds])
        for index, phase in enumerate(dict.fromkeys(timing.phase for timing in inside))
    ]
    outside = [timing for timing in whole if not timing.round]
    once = [(phase, _seconds(outside, phase, None)) for phase in dict.fromkeys(timing.phase for timing in outside)]
    figure = Figure("Seconds by round", stacked_bars(layers, "round", "Seconds")) if layers else None
    return figure, [Legend(layer.name, layer.style) for layer in layers], once


def failures(run: RunFiles) -> list[tuple[str, int, str, str, str]]:
    """(arm, round, client, phase, reason) of every failure."""
    arms = (("with injection", run.rounds), ("federated-only", run.baseline_rounds))
    return [
        (arm, line.round, failure.client, failure.phase, failure.reason)
        for arm, rounds in arms
        for line in rounds
        for failure in line.failures
    ]


def _seconds(timings: list[Timing], phase: str, number: int | None) -> float:
    return sum((t.seconds for t in timings if t.phase == phase and number in (None, t.round)), start=0.0)
