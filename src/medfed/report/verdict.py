"""Does injection help? The sentences at the top of the report, computed from the scores alone.

Trained tasks: AUROC of the injected LLM minus that of the federated-only model, on the same resamples of the same
patients; better or worse only where the 95 % interval excludes 0. Unseen tasks: above chance only where the interval of
the AUROC lies above 0.5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

from medfed.report.records import ScoreFile, ScoreRow

Outcome = Literal["better", "worse", "unclear", "undefined"]
METRIC, MODEL, BASELINE, CHANCE = "auroc", "fedkim", "federated", 0.5
UNDECIDED, UNDEFINED = "not distinguishable from chance", "no value"


def outcome(row: ScoreRow, null: float) -> Outcome:
    """Where the interval lies against ``null``; without an interval nothing is claimed."""
    if row.value is None:
        return "undefined"
    if row.ci_low is None or row.ci_high is None:
        return "unclear"
    if row.ci_low > null:
        return "better" if row.higher_is_better else "worse"
    if row.ci_high < null:
        return "worse" if row.higher_is_better else "better"
    return "unclear"


class Verdict(NamedTuple):
    """The outcome on one task, in words, with the row it rests on."""

    outcome: Outcome
    text: str
    row: ScoreRow


def trained_verdicts(scores: ScoreFile) -> dict[str, Verdict]:
    """Task → verdict of the injected LLM against the federated-only model."""
    words = {"better": "better", "worse": "worse", "unclear": "no clear difference", "undefined": UNDEFINED}
    rows = [row for row in scores.differences if (row.metric, row.model, row.baseline) == (METRIC, MODEL, BASELINE)]
    return {row.task: Verdict(kind := outcome(row, 0.0), words[kind], row) for row in rows}


def unseen_verdicts(scores: ScoreFile) -> dict[str, Verdict]:
    """Task → verdict of the injected LLM against chance."""
    words = {"better": "above chance", "worse": "below chance", "unclear": UNDECIDED, "undefined": UNDEFINED}
    rows = [row for row in scores.rows if (row.metric, row.model, row.role) == (METRIC, MODEL, "unseen")]
    return {row.task: Verdict(kind := outcome(row, CHANCE), words[kind], row) for row in rows}


def sentences(scores: ScoreFile) -> list[str]:
    """The verdict in at most two sentences; one that says there is none if the scores do not tell."""
    said = []
    if trained := trained_verdicts(scores):
        found = _counts(trained.values())
        said.append(
            f"Injected LLM against the federated-only model, AUROC on {_tasks(len(trained), 'trained')}: better on "
            f"{found['better']}, worse on {found['worse']}, no clear difference on {found['unclear']}{_gap(found)}."
        )
    if unseen := unseen_verdicts(scores):
        found = _counts(unseen.values())
        below = f", below it on {found['worse']}" if found["worse"] else ""
        said.append(
            f"AUROC on {_tasks(len(unseen), 'unseen')}: above chance on {found['better']}{below}, "
            f"{UNDECIDED} on {found['unclear']}{_gap(found)}."
        )
    return said or ["This run has no scores yet, so it says nothing about the method."]


def _counts(verdicts: Iterable[Verdict]) -> Counter[Outcome]:
    return Counter(verdict.outcome for verdict in verdicts)


def _gap(found: Counter[Outcome]) -> str:
    return f", {UNDEFINED} on {found['undefined']}" if found["undefined"] else ""


def _tasks(number: int, kind: str) -> str:
    return f"{number} {kind} task{'s' if number != 1 else ''}"
