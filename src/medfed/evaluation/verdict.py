"""One verdict for every claim, in three words, from intervals alone: terminal, report, README and docs say the same.

A claim is *supported* if the whole interval is on its side, and *contradicted* if it is on the other side. Otherwise,
or without an interval, it is *not distinguishable*. No point estimate decides anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from medfed.evaluation.controls import JUDGED, is_control
from medfed.records.schema import Compared, ComparedDifference, ComparedRow, Difference, Score, ScoreRow

Verdict = Literal["supported", "not distinguishable", "contradicted"]
SUPPORTED: Verdict = "supported"
UNCLEAR: Verdict = "not distinguishable"
CONTRADICTED: Verdict = "contradicted"
Bounded = Score | Compared
"""A row with an interval: of a run's scores or of a comparison."""
Gap = Difference | ComparedDifference
"""A paired difference, of one run or over seeds."""
Question = tuple[str, str | None]
"""(task, part of its questions)."""


def above(row: Bounded, bound: float) -> Verdict:
    """Return the verdict on the claim that the value is above ``bound``."""
    if row.ci_low is None or row.ci_high is None:
        return UNCLEAR
    if row.ci_low > bound:
        return SUPPORTED
    return CONTRADICTED if row.ci_high < bound else UNCLEAR


def below(row: Bounded, bound: float) -> Verdict:
    """Return the verdict on the claim that the value is below ``bound``."""
    return opposite(above(row, bound))


def better(difference: Bounded, margin: float = 0.0) -> Verdict:
    """Return the verdict on the claim that a paired difference (model minus baseline) favours the model.

    With a ``margin`` the claim is that it costs the model less than that.
    """
    return above(difference, -margin) if difference.higher_is_better else below(difference, margin)


def above_chance(row: ScoreRow | ComparedRow, chance: float) -> Verdict:
    """Return the verdict on the claim that the value is better than ``chance``.

    A model that gives every example the same answer is not distinguishable from chance, whatever its value.
    """
    if row.single_class:
        return UNCLEAR
    return above(row, chance) if row.higher_is_better else below(row, chance)


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict on several claims at once: one that is contradicted contradicts them all."""
    distinct = set(verdicts)
    if CONTRADICTED in distinct:
        return CONTRADICTED
    return SUPPORTED if distinct == {SUPPORTED} else UNCLEAR


def opposite(verdict: Verdict) -> Verdict:
    """Return the verdict on the opposite claim."""
    return {SUPPORTED: CONTRADICTED, CONTRADICTED: SUPPORTED}.get(verdict, UNCLEAR)


class OverControls(NamedTuple):
    """The verdict on "better than every control" on each task, and the differences to the controls it loses to."""

    verdicts: dict[Question, Verdict]
    lost: dict[Question, list[Gap]]


def over_controls(gaps: Iterable[Gap]) -> OverControls | None:
    """Return whether the injected LLM beats every control; None where no control is among the baselines.

    ``gaps`` are the LLM minus other models, by one metric a task. A task's claim is on all its controls at once.
    Yes/no among open questions are a task of their own. Bounds are no controls.
    """
    held: dict[Question, list[Gap]] = {}
    for gap in gaps:
        if baseline_of(gap) in JUDGED and gap.value is not None:
            held.setdefault((gap.task, gap.part), []).append(gap)
    if not any(is_control(baseline_of(gap)) for judged in held.values() for gap in judged):
        return None
    lost = {question: [gap for gap in judged if better(gap) == CONTRADICTED] for question, judged in held.items()}
    verdicts = {question: all_of(map(better, judged)) for question, judged in held.items()}
    return OverControls(verdicts, {question: judged for question, judged in lost.items() if judged})


def baseline_of(gap: Gap) -> str:
    """Return the model that the LLM is held against."""
    return gap.baseline if isinstance(gap, Difference) else gap.baseline_model
