"""A row of the table: one cost in units of another, with an interval, a target and what became of it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from benchmarks.bytes import peak_bytes, size

Bound = Literal["≤", "≥", "="]
HOLDS: dict[Bound, Callable[[float, float], bool]] = {"≤": operator.le, "≥": operator.ge}
NEAR, SURE = 0.03, 0.10
"""How far from ``= value`` the ratio and the ends of its interval may be."""


class Target(NamedTuple):
    """The bound of a ratio; :func:`judged` explains ``=``."""

    bound: Bound
    value: float

    def __str__(self) -> str:
        return f"{self.bound} {self.value:.2f}"


class Interval(NamedTuple):
    """A ratio with the ends of its 95 % interval."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A comparison and its outcome.

    Attributes:
        group: which part of the benchmark.
        setting: shapes and sizes.
        over, under: the ratio is the cost of ``over`` divided by that of ``under``.
        measure: what is divided: CPU time, bytes, …
        ratio: None where it could not be measured; then ``note`` says why.
        low, high: 95 % interval; None for what is counted and not timed.
        target: as text, None without one.
        reached: whether the ratio meets the target; None without one.
        turns: how often both were run.
        takes: cost of one run of ``over``, with its unit.
        wall_ratio: the same ratio of wall times, for what waits as well as computes.
        note: what else is to be known.
    """

    group: str
    setting: str
    over: str
    under: str
    measure: str
    ratio: float | None
    low: float | None = None
    high: float | None = None
    target: str | None = None
    reached: bool | None = None
    turns: int = 0
    takes: str = ""
    wall_ratio: float | None = None
    note: str = ""


def judged(target: Target | None, interval: Interval) -> bool | None:
    """Say whether ``interval`` meets ``target``.

    ``≤`` and ``≥`` look at the ratio. ``=`` is a test of equivalence, which noise fails. To two decimals, the ratio is
    at most :data:`NEAR` from the value, and the whole interval at most :data:`SURE`. The lower end is not above it.
    """
    if target is None:
        return None
    if target.bound != "=":
        return HOLDS[target.bound](interval.ratio, target.value)
    off, below, above = (round(end - target.value, 2) for end in interval)
    return abs(off) <= NEAR and -SURE <= below <= 0 and above <= SURE


def counted(
    group: str,
    setting: str,
    over: tuple[str, float],
    under: tuple[str, float],
    *,
    measure: str = "bytes",
    target: Target | None = None,
    takes: str = "",
    note: str = "",
) -> Row:
    ratio = over[1] / under[1]
    reached = judged(target, Interval(ratio, ratio, ratio))
    wanted = None if target is None else str(target)
    return Row(group, setting, over[0], under[0], measure, ratio, None, None, wanted, reached, 1, takes, None, note)


def peaks(group: str, setting: str, runs: Mapping[str, Callable[[], object]], over: str, under: str) -> Row:
    """Return the row of the most that two of ``runs`` hold at once beyond what was there before."""
    most, least = (float(peak_bytes(runs[name])) for name in (over, under))
    return of_memory(group, setting, (over, most), (under, least), kind="peak bytes")


def of_memory(group: str, setting: str, over: tuple[str, float], under: tuple[str, float], *, kind: str) -> Row:
    """Return a row of bytes, counted by torch's allocator or kept for the backward pass, as ``kind`` says."""
    return counted(group, setting, over, under, measure=kind, takes=size(over[1]))


def left_out(
    group: str, setting: str, over: str, under: str, reason: str, target: Target | None = None, measure: str = ""
) -> Row:
    """Return a row that says why it has no number."""
    wanted = None if target is None else str(target)
    return Row(group, setting, over, under, measure, None, target=wanted, note=reason)
