"""Several runs compared over seeds, and algorithms ranked over blocks."""

from __future__ import annotations

from medfed.records.schema.base import File, Number, Record, Role
from medfed.records.schema.provenance import Cost


class Compared(Record):
    """One model of one cell on one task, over the cell's seeds; ``part`` names a share of the task's questions."""

    label: str
    model: str
    task: str
    role: Role = "trained"
    metric: str
    part: str | None = None
    value: Number = None
    ci_low: Number = None
    ci_high: Number = None
    higher_is_better: bool = True
    num_seeds: int = 1
    reason: str | None = None


class ComparedRow(Compared):
    """A value: the mean over seeds, with the value of every seed."""

    per_seed: tuple[Number, ...] = ()
    n: int = 0
    single_class: bool = False


class ComparedDifference(Compared):
    """A paired difference between two cells or models; ``significant`` needs enough seeds and Holm's correction."""

    baseline_label: str
    baseline_model: str
    p: Number = None
    p_holm: Number = None
    significant: bool = False


class ComparedAnswers(Record):
    """Means over a cell's seeds of :class:`AnswerCheck`, of one closed task."""

    label: str
    task: str
    num_seeds: int = 1
    n: int = 0
    rank_correlation: dict[str, Number] = {}
    negation: Number = None
    paraphrases: Number = None


class ComparisonFile(File, path="comparison.json"):
    """``comparison.json``: several runs compared over seeds.

    Attributes:
        name, description: of the sweep.
        paper: the tables of the paper that the sweep reproduces; empty means all.
        labels: cells; the runs of one label are its seeds.
        seeds: label → seeds.
        cells: label → axis → value.
        folders: the run folders.
        distances: label → round → total-variation distance between the tasks' mixtures of experts, by run.
        entropies: label → round → mean entropy of the tasks' mixtures in nats, by run.
        answers: closed tasks, and whether the LLM's answers follow heads and question.
    """

    name: str = ""
    description: str = ""
    paper: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    seeds: dict[str, tuple[int, ...]] = {}
    cells: dict[str, dict[str, str]] = {}
    folders: tuple[str, ...] = ()
    rows: tuple[ComparedRow, ...] = ()
    differences: tuple[ComparedDifference, ...] = ()
    distances: dict[str, dict[int, tuple[float, ...]]] = {}
    entropies: dict[str, dict[int, tuple[float, ...]]] = {}
    answers: tuple[ComparedAnswers, ...] = ()


class Standing(Record):
    """One algorithm, or bound, in one block: mean and spread over seeds, its worst client, and mean costs."""

    mean: Number = None
    std: Number = None
    worst_client: Number = None
    seeds: dict[str, Number] = {}
    intervals: tuple[tuple[Number, Number], ...] = ()
    cost: Cost | None = None


class Block(Record):
    """One task under one partition."""

    name: tuple[str, ...]
    task: str
    metric: str
    title: str = ""
    higher_is_better: bool = True
    n: int = 0
    values: dict[str, Standing] = {}
    bounds: dict[str, Standing] = {}


class Rank(Record):
    """An algorithm's rank, on average and by block."""

    mean: Number = None
    by_block: tuple[float, ...] = ()


class LeaderboardFile(File, path="leaderboard.json"):
    """``leaderboard.json``: algorithms ranked over blocks.

    Attributes:
        num_blocks: blocks in which every algorithm has a value.
        num_left_out: the others.
        friedman_p: of Friedman's test; None where it has no statistic.
        critical_difference: Nemenyi's.
        groups: algorithms, best first, that do not differ.
    """

    name: str = ""
    description: str = ""
    algorithms: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    num_blocks: int = 0
    num_left_out: int = 0
    ranks: dict[str, Rank] = {}
    friedman_p: Number = None
    critical_difference: Number = None
    groups: tuple[tuple[str, ...], ...] = ()
    folders: tuple[str, ...] = ()
