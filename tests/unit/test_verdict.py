"""One verdict for every claim, from intervals alone."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from medfed.evaluation.verdict import (
    CONTRADICTED,
    SUPPORTED,
    UNCLEAR,
    Verdict,
    above,
    above_chance,
    all_of,
    below,
    better,
    opposite,
)


class Row(NamedTuple):
    ci_low: float | None
    ci_high: float | None
    higher_is_better: bool = True
    single_class: bool = False


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (Row(0.6, 0.8), SUPPORTED),
        (Row(0.5, 0.8), UNCLEAR),
        (Row(0.4, 0.6), UNCLEAR),
        (Row(0.2, 0.5), UNCLEAR),
        (Row(0.2, 0.4), CONTRADICTED),
        (Row(None, None), UNCLEAR),
        (Row(0.6, None), UNCLEAR),
    ],
)
def test_only_a_whole_interval_on_one_side_decides(row: Row, verdict: Verdict) -> None:
    assert above(row, 0.5) == verdict
    assert below(row, 0.5) == opposite(verdict)
    assert above_chance(row, 0.5) == verdict


def test_a_model_with_one_answer_is_never_above_chance() -> None:
    assert above_chance(Row(0.6, 0.9, single_class=True), 0.5) == UNCLEAR
    assert above_chance(Row(0.1, 0.2, single_class=True), 0.5) == UNCLEAR


def test_a_difference_counts_in_the_metrics_direction() -> None:
    assert better(Row(0.01, 0.02)) == SUPPORTED
    assert better(Row(0.01, 0.02, higher_is_better=False)) == CONTRADICTED
    assert better(Row(-0.02, -0.01, higher_is_better=False)) == SUPPORTED
    assert above_chance(Row(0.1, 0.2, higher_is_better=False), 0.25) == SUPPORTED


def test_a_margin_is_what_the_model_may_lose() -> None:
    print("at least −0.005: [−0.004, 0.03] says yes, [−0.024, 0.029] does not tell, [−0.03, −0.01] says no")
    assert better(Row(-0.004, 0.03), 0.005) == SUPPORTED
    assert better(Row(-0.024, 0.029), 0.005) == UNCLEAR
    assert better(Row(-0.03, -0.01), 0.005) == CONTRADICTED
    assert better(Row(-0.03, 0.004, higher_is_better=False), 0.005) == SUPPORTED


def test_claims_together_hold_only_if_each_does() -> None:
    assert all_of([SUPPORTED, SUPPORTED]) == SUPPORTED
    assert all_of([SUPPORTED, UNCLEAR]) == UNCLEAR
    assert all_of([SUPPORTED, UNCLEAR, CONTRADICTED]) == CONTRADICTED
    assert all_of([]) == UNCLEAR
