"""Ranks, Nemenyi's critical difference, groups, and the page of a leaderboard."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.evaluation.leaderboard import critical_difference, groups, leaderboard, ranked
from medfed.records.folder import RunFolder
from medfed.records.schema import (
    Block,
    Cost,
    DataFacts,
    LeaderboardFile,
    ProvenanceFile,
    ScoreFile,
    ScoreRow,
    Standing,
    StudyFile,
)
from medfed.report.leaderboard import conclusion, leaderboard_markdown, leaderboard_table, order
from medfed.report.page import write_report


def block(values: dict[str, float | None], *, higher: bool = True, name: str = "t") -> Block:
    standings = {key: Standing(mean=value) for key, value in values.items()}
    return Block(name=(name,), task=name, metric="m", higher_is_better=higher, values=standings)


@pytest.mark.parametrize(("count", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (10, 3.164)])
def test_the_critical_difference_has_the_published_q(count: int, q: float) -> None:
    """Demšar 2006, Table 5 (a), two-tailed Nemenyi test at 0.05."""
    expected = q * (count * (count + 1) / (6 * 14)) ** 0.5
    assert critical_difference(count, 14) == pytest.approx(expected, rel=2e-3)


def test_ranks_are_means_and_ties_share_theirs() -> None:
    blocks = [block({"a": 0.9, "b": 0.7, "c": 0.7}), block({"a": 3.0, "b": 1.0, "c": 2.0}, higher=False)]
    found = ranked(blocks, list("abc"))
    print("block 1: a 1, b and c share 2.5; block 2, lower is better: b 1, c 2, a 3")
    assert {name: rank.mean for name, rank in found.ranks.items()} == {"a": 2.0, "b": 1.75, "c": 2.25}


def test_a_block_with_an_undefined_metric_is_left_out_and_counted() -> None:
    found = ranked([block({"a": 0.9, "b": 0.7}), block({"a": 0.1, "b": None})], ["a", "b"])
    assert (found.num_blocks, found.num_left_out) == (1, 1)
    assert found.ranks["a"].mean == 1.0


def test_groups_are_maximal() -> None:
    means = {"a": 1.0, "b": 1.8, "c": 2.5, "d": 5.0}
    assert groups(means, 1.0) == [["a", "b"], ["b", "c"]]
    assert groups(means, 0.1) == []
    assert groups(means, 9.0) == [["a", "b", "c", "d"]]


def write_run(folder: Path, value: float, worst: float) -> Path:
    facts = {"task": "x", "metric": "auroc", "title": "AUROC", "primary": True, "n": 30, "num_patients": 30}
    facts |= {"clients": {"c0": worst, "c1": value}, "worst": worst, "worst_client": "c0"}
    rows = [
        ScoreRow(**facts, model="federated", value=value, ci_low=value - 0.1, ci_high=value + 0.1),
        ScoreRow(**facts, model="centralised", value=0.95, ci_low=0.9, ci_high=1.0),
        ScoreRow(**facts, model="always-no", value=0.5, ci_low=0.5, ci_high=0.5),
        ScoreRow(**{**facts, "metric": "f1", "title": "F1", "primary": False}, model="federated", value=0.1),
    ]
    run = RunFolder(folder)
    run.write(ScoreFile(rows=tuple(rows)))
    cost = Cost(bytes_up=1000, bytes_down=2000, train_seconds=3.0, round_seconds=4.0, peak_memory_bytes=10**8)
    run.write(ProvenanceFile(cost=cost, data={"x": DataFacts(synthetic=True, title="X")}, processor="Xeon"))
    run.write(StudyFile(name="n"))
    return folder


@pytest.fixture
def board(tmp_path: Path) -> LeaderboardFile:
    values = {"FedAvg": (0.80, 0.70), "FedProx": (0.85, 0.75), "<b>Bad</b>": (0.60, 0.40)}
    folders, places, seeds = [], [], []
    for part in ("iid", "skewed"):
        for name, by_seed in values.items():
            for seed in (0, 1):
                folder = tmp_path / f"{part}{list(values).index(name)}{seed}"
                folders.append(write_run(folder, by_seed[seed], by_seed[seed] - 0.2))
                places.append({"task": "X", "partition": part, "algorithm": name})
                seeds.append(seed)
    found = leaderboard(folders, places, seeds)
    found = found.model_copy(update={"name": "board", "description": "words", "folders": tuple(map(str, folders))})
    write_report(found, tmp_path / "report.html", folders)
    return found


def test_means_and_deviations_are_over_seeds(board: LeaderboardFile) -> None:
    first, average = board.blocks[0], board.blocks[0].values["FedAvg"]
    assert first.name == ("X", "iid")
    assert average.mean == pytest.approx(0.75)
    assert average.std == pytest.approx(0.0707, abs=1e-3)
    assert average.worst_client == pytest.approx(0.55)
    assert average.cost.bytes_up == 1000
    assert first.bounds["centralised"].mean == pytest.approx(0.95)
    assert first.bounds.keys() == {"centralised", "always-no"}
    assert order(board) == ["FedProx", "FedAvg", "<b>Bad</b>"]


def test_two_blocks_are_too_few_to_tell(board: LeaderboardFile) -> None:
    print("k = 3, N = 2: CD = 2.343 √(3·4/12) = 2.34 > 3 − 1")
    assert board.critical_difference == pytest.approx(2.343, abs=1e-2)
    assert "no algorithm differs significantly" in conclusion(board) or "any single one" in conclusion(board)


def test_the_page_escapes_names_and_says_synthetic(board: LeaderboardFile, tmp_path: Path) -> None:
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>Bad</b>" not in page
    assert "&lt;b&gt;Bad" in page
    assert "Synthetic data" in page
    assert "FedProx 1.00" in page
    assert "Xeon" in page
    text = leaderboard_markdown(board)
    assert "| X · iid | AUROC | 0.800 ± 0.071 | 0.750 ± 0.071 |" in text
    assert text.count("0.950") == 2
    assert [column.header.plain for column in leaderboard_table(board).columns[2:5]] == order(board)
