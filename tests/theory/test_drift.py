"""What docs/drift.md says of the quadratics is so."""

from __future__ import annotations

import drift


def test_scaffold_reaches_fedavgs_final_loss_in_clearly_fewer_rounds_and_goes_on() -> None:
    curves = drift.unlike_curvature()
    fedavg = curves.rounds_to_fedavg("FedAvg")
    for name in drift.SCAFFOLDS:
        rounds = curves.rounds_to_fedavg(name)
        print(f"{name}: {rounds} rounds, FedAvg {fedavg}; at the end {curves.final(name)}, {curves.final('FedAvg')}")
        assert rounds is not None
        assert fedavg is not None
        assert 2 * rounds <= fedavg
        assert curves.final(name) < 1e-6 * curves.final("FedAvg")


def test_fednova_corrects_unequal_local_steps() -> None:
    curves = drift.unequal_steps()
    print({name: curves.final(name) for name in curves.losses})
    assert curves.final("FedNova") < 0.1 * curves.final("FedAvg")


def test_a_window_smooths_and_the_table_says_when_fedavg_was_reached() -> None:
    curves = drift.Curves("t", "s", {"FedAvg": [8.0, 4.0, 4.0, 4.0], "other": [9.0, 5.0, 3.0, 1.0]}, window=2)
    assert curves.smoothed("other") == [float("inf"), 7.0, 4.0, 2.0]
    assert [curves.rounds_to_fedavg(name) for name in curves.losses] == [3, 3]
    slow = drift.Curves("t", "s", {"FedAvg": [2.0, 1.0], "slow": [3.0, 2.0]})
    assert "| slow | 2 | not in 2 |" in drift.page([slow])
