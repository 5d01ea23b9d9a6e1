"""``medfed site egress-report``: what left a site, by run and round, from its audit log alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from medfed.site.chain import Entry


class Row(NamedTuple):
    """What left in one round of one run.

    Attributes:
        run: id of the run.
        round: round number; 0 outside rounds.
        kinds: kind → entries.
        num_bytes: bytes that left.
        num_examples: the largest number of examples told; None if none was.
        tensors: component → tensors.
        metrics: names of the numbers told, sorted.
    """

    run: str
    round: int
    kinds: Counter[str]
    num_bytes: int
    num_examples: int | None
    tensors: Counter[str]
    metrics: list[str]


def egress_rows(entries: Iterable[Entry]) -> list[Row]:
    """Return a row for every run and round, in order of their first entry; notes of the log itself do not count."""
    groups: dict[tuple[str, int], list[Entry]] = {}
    for entry in entries:
        if "bytes" in entry:
            groups.setdefault((entry["run"], entry["round"]), []).append(entry)
    return [_row(run, number, group) for (run, number), group in groups.items()]


def _row(run: str, number: int, entries: list[Entry]) -> Row:
    tensors: Counter[str] = Counter()
    for entry in entries:
        tensors.update(entry["tensors"])
    told = [entry["num_examples"] for entry in entries if entry["num_examples"] is not None]
    return Row(
        run,
        number,
        Counter(entry["kind"] for entry in entries),
        sum(entry["bytes"] for entry in entries),
        max(told, default=None),
        tensors,
        sorted({name for entry in entries for name in entry["metrics"]}),
    )
