"""Rules over measured values: what is read, what holds, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.core.rules import Amount, Rule

MEASURES = {
    "crea.high": np.array([3.0, 1.0, np.nan, 3.0]),
    "crea.low": np.array([1.0, 0.4, np.nan, 3.0]),
    "bun.high": np.array([40.0, 40.0, 40.0, 10.0]),
    "temp.high": np.array([39.0, 37.0, 37.0, np.nan]),
    "temp.low": np.array([37.0, 35.0, 37.0, np.nan]),
    "urine.sum": np.array([100.0, 900.0, np.nan, 400.0]),
}


def holds(text: str) -> list[bool]:
    return Rule(text).holds(MEASURES.__getitem__, lambda code: np.array([code == "AFIB"] * 4)).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("crea > 2 and bun > 30", [True, False, False, False]),
        ("crea > 2 or bun > 30", [True, True, True, True]),
        ("crea < 0.5", [False, True, False, False]),
        ("2 < crea", [True, False, False, True]),
        ("temp > 38 or temp < 36", [True, True, False, False]),
        ("at_least(2, crea > 2, bun > 30, temp > 38)", [True, False, False, False]),
        ("crea.high - crea.low >= 1.5", [True, False, False, False]),
        ("crea.high / crea.low < 2", [False, False, False, True]),
        ("not crea > 2", [False, True, True, False]),
        ("0.5 <= crea.low < 2", [True, False, False, False]),
        ("-crea.high < -2", [True, False, False, True]),
        ('coded("AFIB", "AFLT") and crea > 2', [True, False, False, True]),
        ('coded("AFLT")', [False] * 4),
    ],
)
def test_what_holds(text: str, expected: list[bool]) -> None:
    assert holds(text) == expected


def test_a_value_that_was_not_measured_makes_a_comparison_false() -> None:
    assert holds("urine.sum < 500") == [True, False, False, True]
    assert holds("urine.sum >= 500") == [False, True, False, False]


def test_what_is_read() -> None:
    rule = Rule('(crea > 2 or crea < 0.5) and urine.sum < 500 and coded("AFIB", "AFLT")')
    assert rule.measures == ("crea.high", "crea.low", "urine.sum")
    assert rule.codes == ("AFIB", "AFLT")
    assert Amount("po2.low / fio2.high").measures == ("po2.low", "fio2.high")


def test_an_amount_is_computed() -> None:
    assert Amount("crea.high * 2 - 1").values(MEASURES.__getitem__)[:2].tolist() == [5.0, 1.0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("crea >", "cannot be read"),
        ("crea", "no condition"),
        ("crea.high", "no condition"),
        ("crea + bun > 3", "say which value"),
        ("crea > 'x'", "no measured value"),
        ("f(crea) > 2", "no measured value"),
        ("at_least('a', crea > 2)", "no condition"),
        ("at_least(2)", "no condition"),
        ("coded()", "no condition"),
        ("crea == 2", "no condition"),
        ("__import__('os').system('true')", "no condition"),
        ("(lambda: 1)() > 0", "no measured value"),
    ],
)
def test_what_is_no_rule_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Rule(text)


def test_a_bare_variable_is_no_amount() -> None:
    with pytest.raises(ValueError, match="say which value"):
        Amount("crea")


def test_a_rule_by_codes_needs_data_that_has_them() -> None:
    with pytest.raises(ValueError, match="has no codes"):
        Rule('coded("AFIB")').holds(MEASURES.__getitem__)
