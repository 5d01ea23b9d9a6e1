"""Several ways to do one thing, timed in turn in one process.

A turn runs every variant once, in a new random order, so whatever disturbs the machine disturbs all alike. The ratio of
two variants is that of their medians over the turns; its interval comes from resampling whole turns. CPU time of the
process, one torch thread, warm-up turns that do not count, no garbage collection inside a run.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from benchmarks.rows import Interval, Row, Target, judged
from benchmarks.same import require_same

Run = Callable[[], object]
Clock = Literal["CPU time", "wall time"]
WARM_UP, LEAST, MOST, RESAMPLES = 2, 7, 40, 2000
LONG = 5.0
"""Seconds that one turn may take and still be worth a second warm-up."""


@dataclass(frozen=True)
class Versus:
    """A row to be: the cost of ``over`` in units of that of ``under``.

    Attributes:
        over, under: names of variants.
        target: what the ratio must be.
        same: both return the same values; this is checked, and a benchmark whose variants differ stops.
        wall: add the ratio of wall times.
        note: for the row.
    """

    over: str
    under: str
    target: Target | None = None
    same: bool = False
    wall: bool = False
    note: str = ""


@dataclass(frozen=True)
class Bench:
    """How much to measure.

    Attributes:
        quick: toy sizes and a few turns: shows that everything runs, and says nothing about speed.
    """

    quick: bool = False

    def race(
        self,
        group: str,
        setting: str,
        variants: Mapping[str, Run],
        pairs: Sequence[Versus],
        *,
        seconds: float = 15.0,
        tolerance: float = 1e-4,
        turns: int = LEAST,
        clock: Clock = "CPU time",
        tokens: int = 0,
    ) -> list[Row]:
        """Time ``variants`` in turn and return a row for every one of ``pairs``.

        Args:
            group: for the rows.
            setting: for the rows.
            variants: what to time, by name.
            pairs: which of them to compare.
            seconds: go on for so long.
            tolerance: largest difference, relative to the largest value, between variants that compute the same.
            turns: at least so many, however long they take.
            clock: what is divided; an accelerator's runs, which must wait for it, take wall time.
            tokens: that a run goes through; the rows then tell tokens a second.
        """
        with _quiet():
            self._check(variants, pairs, tolerance)
            cpu, wall = self._turns(variants, 0.0 if self.quick else seconds, 2 if self.quick else turns)
        spent, names = cpu if clock == "CPU time" else wall, list(variants)
        return [_row(group, setting, pair, names, (spent, wall), clock, tokens) for pair in pairs]

    def _check(self, variants: Mapping[str, Run], pairs: Sequence[Versus], tolerance: float) -> None:
        """Run everything ``WARM_UP`` times, or once if that is long.

        The outcomes of the first run are compared where they should be equal.
        """
        started = time.monotonic()
        outcomes = {name: run() for name, run in variants.items()}
        for pair in pairs:
            if pair.same:
                require_same(pair.over, outcomes[pair.over], pair.under, outcomes[pair.under], tolerance)
        outcomes.clear()
        long = time.monotonic() - started > LONG
        for _ in range(0 if self.quick or long else WARM_UP - 1):
            for run in variants.values():
                run()

    @staticmethod
    def _turns(variants: Mapping[str, Run], seconds: float, least: int) -> tuple[np.ndarray, np.ndarray]:
        """Return CPU and wall seconds, ``[turn, variant]``."""
        rng, runs = np.random.default_rng(0), list(variants.values())
        cpu, wall = list[np.ndarray](), list[np.ndarray]()
        ends = time.monotonic() + seconds
        while len(cpu) < least or (time.monotonic() < ends and len(cpu) < MOST):
            spent = np.zeros((2, len(runs)))
            for place in rng.permutation(len(runs)):
                spent[:, place] = _timed(runs[place])
            cpu.append(spent[0])
            wall.append(spent[1])
            gc.collect()
        return np.array(cpu), np.array(wall)


def ratio_of_medians(over: np.ndarray, under: np.ndarray) -> Interval:
    """Return median(over) / median(under) with a 95 % bootstrap interval over the turns, which both share."""
    drawn = np.random.default_rng(0).integers(len(over), size=(RESAMPLES, len(over)))
    ratios = np.median(over[drawn], 1) / np.median(under[drawn], 1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(np.median(over) / np.median(under)), float(low), float(high))


def duration(seconds: float) -> str:
    """Write seconds with three digits and a fitting unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _row(
    group: str,
    setting: str,
    pair: Versus,
    names: list[str],
    spent_and_wall: tuple[np.ndarray, np.ndarray],
    clock: Clock,
    tokens: int,
) -> Row:
    over, under = names.index(pair.over), names.index(pair.under)
    spent, wall = spent_and_wall
    interval, once = ratio_of_medians(spent[:, over], spent[:, under]), float(np.median(spent[:, over]))
    return Row(
        group,
        setting,
        pair.over,
        pair.under,
        clock,
        *interval,
        None if pair.target is None else str(pair.target),
        judged(pair.target, interval),
        len(spent),
        f"{tokens / once:,.0f} tokens/s" if tokens else duration(once),
        ratio_of_medians(wall[:, over], wall[:, under]).ratio if pair.wall else None,
        pair.note,
    )


def _timed(run: Run) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


@contextmanager
def _quiet() -> Iterator[None]:
    """One torch thread, and no garbage collection but between turns, when what was there before is left alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # glibc keeps gigabytes that earlier benchmarks have freed
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
        torch.set_num_threads(threads)
