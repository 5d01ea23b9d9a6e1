"""The benchmarks run, compare what computes the same, and the README's table is made from the numbers beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.bytes import peak_bytes, saved_bytes
from benchmarks.gpu import peak
from benchmarks.rows import Interval, Row, Target, counted, judged
from benchmarks.run import GROUPS, NUMBERS, main, measured, others, read_numbers, write_numbers
from benchmarks.same import DifferentError, require_same
from benchmarks.table import insert, render
from benchmarks.timing import Bench, Versus, ratio_of_medians
from torch import nn

README = Path(__file__).parents[2] / "README.md"
MB = 1_000_000


@cache
def quick_rows(group: str) -> list[Row]:
    return measured(group, Bench(quick=True))


def families(rows: Iterable[Row]) -> set[tuple[str, ...]]:
    """Return what the rows compare, sizes apart."""
    said = ((row.setting, row.over, row.under, row.measure) for row in rows)
    return {tuple(re.sub(r"\d[\d,.]*", "#", part) for part in parts) for parts in said}


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_runs_in_toy_form(group: str, tmp_path: Path) -> None:
    rows = quick_rows(group)
    assert rows
    for row in rows:
        assert row.group == group
        assert row.setting
        assert row.over != row.under
        assert row.ratio is not None
        assert 0 < row.ratio < np.inf
        if row.low is not None and row.high is not None:
            assert row.low <= row.ratio <= row.high
            assert row.turns == 2
        assert (row.reached is None) == (row.target is None)
    write_numbers(tmp_path / "numbers.json", {"processor": "toy"}, rows)
    assert read_numbers(tmp_path / "numbers.json") == ({"processor": "toy"}, rows)


def test_variants_that_compute_different_things_stop_the_benchmark() -> None:
    variants = {"ours": lambda: torch.ones(3), "theirs": lambda: torch.tensor([1.0, 1.0, 1.1])}
    with pytest.raises(DifferentError, match=r"'ours' and 'theirs' differ by 1\.00e-01"):
        Bench(quick=True).race("g", "s", variants, [Versus("ours", "theirs", same=True)])
    assert len(Bench(quick=True).race("g", "s", variants, [Versus("ours", "theirs")])) == 1


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (torch.ones(2), torch.ones(3)),
        ((torch.ones(2), torch.zeros(1)), (torch.ones(2),)),
        (["Yes", "No"], ["Yes", "Yes"]),
        ("1", 1.0),
        ({"w": torch.tensor([float("nan")])}, {"w": torch.tensor([1.0])}),
        (lambda: torch.ones(1), lambda: torch.zeros(1)),
    ],
)
def test_outcomes_that_differ_are_told_apart(found: object, wanted: object) -> None:
    require_same("one", found, "itself", found, 1e-6)
    with pytest.raises(DifferentError):
        require_same("one", found, "other", wanted, 1e-6)


def test_turns_run_every_variant_once_in_changing_order() -> None:
    seen: list[str] = []
    variants = {name: lambda name=name: seen.append(name) for name in "abc"}
    (row,) = Bench().race("g", "s", variants, [Versus("a", "b")], seconds=0.0, turns=12)
    assert row.turns == 12
    timed = seen[len(seen) - 36 :]
    orders = [tuple(timed[start : start + 3]) for start in range(0, 36, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert any(one != next_ for one, next_ in pairwise(orders))


def test_the_ratio_is_that_of_the_medians_and_the_interval_shrinks_with_the_turns() -> None:
    rng = np.random.default_rng(0)
    assert ratio_of_medians(np.array([2.0, 4.0, 9.0]), np.array([1.0, 2.0, 2.0])).ratio == 2.0
    spans = []
    for turns in (9, 900):
        found = ratio_of_medians(2 * rng.lognormal(0, 0.2, turns), rng.lognormal(0, 0.2, turns))
        assert found.low < found.ratio < found.high
        spans.append(found.high - found.low)
    assert found.low < 2 < found.high
    assert spans[1] < spans[0] / 3


def test_a_disturbance_that_a_turn_shares_stays_out_of_the_interval() -> None:
    slow = np.random.default_rng(1).uniform(1, 5, 41)
    low, high = ratio_of_medians(3 * slow, slow)[1:]
    assert low == pytest.approx(3) == high


@pytest.mark.parametrize(
    ("target", "found", "reached"),
    [
        (Target("≤", 1.05), Interval(1.05, 1.0, 1.1), True),
        (Target("≤", 1.05), Interval(1.06, 1.0, 1.1), False),
        (Target("≥", 3.5), Interval(3.4, 3.0, 4.0), False),
        (Target("=", 1.0), Interval(1.004, 1.003, 1.005), True),
        (Target("=", 1.0), Interval(1.03, 0.99, 1.10), True),
        (Target("=", 1.0), Interval(1.30, 0.95, 1.90), False),
        (Target("=", 1.0), Interval(1.04, 0.99, 1.08), False),
        (Target("=", 1.0), Interval(1.00, 0.95, 1.12), False),
        (Target("=", 1.0), Interval(1.00, 0.85, 1.05), False),
        (Target("=", 1.0), Interval(1.02, 1.01, 1.03), False),
        (Target("=", 1.0), Interval(0.98, 0.97, 0.99), True),
        (Target("=", 1.0), Interval(0.9, 0.8, 0.95), False),
        (None, Interval(1.0, 1.0, 1.0), None),
    ],
)
def test_targets(target: Target | None, found: Interval, reached: bool | None) -> None:
    assert judged(target, found) is reached


def test_saved_bytes_count_a_storage_once_and_no_weight() -> None:
    weight = torch.randn(4, 8, requires_grad=True)
    x = torch.randn(16, 8, requires_grad=True)
    step = nn.functional.linear
    assert saved_bytes(lambda: step(x, weight), [weight]) == 4 * x.numel()
    assert saved_bytes(lambda: step(x, weight) + step(x[:8], weight).sum(), [weight]) == 4 * x.numel()
    assert saved_bytes(lambda: step(x.detach(), weight.detach()), []) == 0


def test_peak_bytes_are_the_most_that_is_held_at_once() -> None:
    def one_after_the_other() -> None:
        for _ in range(3):
            torch.ones(MB)

    def together() -> None:
        kept = [torch.ones(MB) for _ in range(3)]
        del kept

    assert peak_bytes(one_after_the_other) == pytest.approx(4 * MB, rel=0.01)
    assert peak_bytes(together) == pytest.approx(12 * MB, rel=0.01)


def test_gradients_that_an_earlier_run_left_are_no_part_of_a_peak() -> None:
    model = nn.Linear(500, 500, bias=False)

    def step() -> None:
        model(torch.ones(1, 500)).sum().backward()

    first = peak(step, [model], "cpu")
    assert model.weight.grad is not None
    assert first >= 4 * 500 * 500
    assert peak(step, [model], "cpu") == first


def test_the_table_in_the_readme_is_made_from_the_numbers_beside_it(tmp_path: Path) -> None:
    head, rows = read_numbers(NUMBERS)
    page = tmp_path / "README.md"
    text = README.read_text(encoding="utf-8")
    page.write_text(re.sub(r"(<!-- bench -->\n).*?(<!-- /bench -->)", r"\1\2", text, flags=re.DOTALL), encoding="utf-8")
    insert(page, render(head, rows))
    assert page.read_text(encoding="utf-8") == text, "run: python -m benchmarks.run --write README.md"


def test_the_numbers_are_of_every_group_at_full_size() -> None:
    head, rows = read_numbers(NUMBERS)
    assert {row.group for row in rows} == set(GROUPS)
    for group in set(GROUPS) - {"gpu"}:  # without one a single row says so
        kept, run = families(row for row in rows if row.group == group), families(quick_rows(group))
        assert kept == run, f"run: python -m benchmarks.run --write README.md ({group})"
    assert {"processor", "torch", "peft", "transformers", "medfed", "date"} <= head.keys()
    assert "sizes" not in head
    assert all(row.turns >= 7 for row in rows if row.low is not None)


def test_numbers_of_other_groups_are_kept_where_machine_and_versions_are_the_same(tmp_path: Path) -> None:
    path, here = tmp_path / "numbers.json", {"processor": "toy"}
    one, other = (counted(group, "s", ("a", 2.0), ("b", 1.0)) for group in ("memory", "wire"))
    assert others(path, here, ["wire"]) == []
    write_numbers(path, here, [one, other])
    assert others(path, here, ["wire"]) == [one]
    assert others(path, here, ["memory", "wire"]) == []
    assert others(path, {"processor": "another"}, ["wire"]) == []
    assert others(path, here | {"date": "2026-11-30"}, ["wire"]) == [one]


def test_a_row_that_misses_its_target_stands_in_the_table_and_above_it() -> None:
    lost = counted("g", "a setting", ("ours", 3.0), ("theirs", 2.0), target=Target("≤", 1.1))
    absent = Row("g", "a setting", "a", "b", "", None, note="no GPU on this machine")
    text = render({"processor": "toy"}, [lost, absent])
    assert "0 of 1 targets are reached" in text
    assert "- missed: a setting: ours ÷ theirs, bytes is 1.50, ≤ 1.10 is wanted" in text
    assert "| ours ÷ theirs, bytes | 1.50 | exact | ≤ 1.10 | **no** | 1 |  |" in text
    assert "| a ÷ b: no GPU on this machine | – |" in text


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="has no markers"):
        insert(page, "table")
    assert page.read_text(encoding="utf-8") == "nothing"


def test_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["--list"])
    assert capsys.readouterr().out.split() == list(GROUPS)
    main(["--quick", "--only", "wire", "--json", str(tmp_path / "numbers.json")])
    assert "upload in float32 ÷ download" in capsys.readouterr().out
    assert {row.group for row in read_numbers(tmp_path / "numbers.json")[1]} == {"wire"}
    for partly in (["--quick"], ["--only", "wire"]):
        with pytest.raises(SystemExit):
            main([*partly, "--json", str(tmp_path / "none.json"), "--write", str(tmp_path / "README.md")])
    assert "--write is for the whole table" in capsys.readouterr().err
