"""What the comparison report reads: rows and paired differences over seeds, as the evaluation writes them."""

from __future__ import annotations

from pydantic import Field

from medfed.report.records import Number, Record


class ComparedRow(Record):
    """One model of one cell on one task, over the cell's seeds; ``part`` names a share of the task's examples."""

    label: str
    model: str
    task: str
    role: str = "trained"
    metric: str
    part: str | None = None
    value: Number = None
    ci_low: Number = None
    ci_high: Number = None
    per_seed: tuple[Number, ...] = ()
    n: int = 0
    num_seeds: int = 1
    single_class: bool = False
    higher_is_better: bool = True
    reason: str | None = None


class ComparedDifference(Record):
    """A paired difference between two cells or models; ``significant`` needs enough seeds and Holm's correction."""

    label: str
    model: str
    baseline_label: str
    baseline_model: str
    task: str
    role: str = "trained"
    metric: str
    part: str | None = None
    value: Number = None
    ci_low: Number = None
    ci_high: Number = None
    p: Number = None
    p_holm: Number = None
    num_seeds: int = 1
    significant: bool = False
    reason: str | None = None


class Comparison(Record):
    """Several runs compared: ``labels`` are cells, runs of one label are its seeds.

    ``paper`` names the tables of the paper that the comparison reproduces; empty means all.
    """

    name: str = ""
    paper: tuple[str, ...] = ()
    description: str = ""
    labels: tuple[str, ...]
    seeds: dict[str, tuple[int, ...]] = Field(default={})
    rows: tuple[ComparedRow, ...] = ()
    differences: tuple[ComparedDifference, ...] = ()
