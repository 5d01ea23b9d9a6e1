"""Truncated updates are the best of their rank, and what is said of the error is what a dense computation measures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medfed.export.lowrank import Factors, truncated


def factors(rank: int, rows: int, columns: int, seed: int) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, columns, generator=generator)
    scales = torch.logspace(0, -3, rank)  # some directions matter, others hardly
    return Factors(down, torch.randn(rows, rank, generator=generator) * scales)


LAYERS = {"wide": factors(6, 40, 17, 0), "tall": factors(6, 11, 50, 1), "narrow": factors(6, 4, 9, 2)}


def dense(update: Factors) -> Tensor:
    return update.up.double() @ update.down.double()


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_truncation_is_as_good_as_the_dense_one_and_its_error_is_measured(rank: int) -> None:
    cut = truncated(LAYERS, rank)
    errors, norms = 0.0, 0.0
    for name, update in LAYERS.items():
        U, values, Vh = torch.linalg.svd(dense(update), full_matrices=False)
        best = (U[:, :rank] * values[:rank]) @ Vh[:rank]
        torch.testing.assert_close(dense(cut.factors[name]), best, atol=1e-5, rtol=1e-4)
        error, norm = (dense(cut.factors[name]) - dense(update)).norm().item(), dense(update).norm().item()
        print(f"{name}: said {cut.losses[name].relative_error:.8f}, measured {error / norm:.8f}")
        assert cut.losses[name].relative_error == pytest.approx(error / norm, rel=1e-4, abs=1e-6)
        assert cut.losses[name].energy_kept == pytest.approx(1 - (error / norm) ** 2, abs=1e-6)
        errors, norms = errors + error**2, norms + norm**2
    assert cut.overall.relative_error == pytest.approx((errors / norms) ** 0.5, rel=1e-4)
    assert cut.losses[cut.worst].relative_error == max(loss.relative_error for loss in cut.losses.values())


def test_all_layers_have_the_rank_even_where_a_layer_is_narrower() -> None:
    cut = truncated(LAYERS, 5)
    assert {name: (update.down.shape[0], update.up.shape[1]) for name, update in cut.factors.items()} == dict.fromkeys(
        LAYERS, (5, 5)
    )
    torch.testing.assert_close(dense(cut.factors["narrow"]), dense(LAYERS["narrow"]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [6, 7, 600])
def test_a_rank_that_holds_everything_changes_nothing(rank: int) -> None:
    whole = truncated(LAYERS, rank)
    assert whole.rank == 6
    assert all(whole.factors[name] is update for name, update in LAYERS.items())
    assert whole.overall.cut == 0.0
    assert whole.overall.whole == pytest.approx(sum(dense(update).square().sum().item() for update in LAYERS.values()))


def test_an_update_of_nothing_loses_nothing() -> None:
    nothing = {"still": Factors(torch.randn(4, 8), torch.zeros(6, 4))}
    cut = truncated(nothing, 2)
    assert cut.losses["still"].relative_error == 0.0
    assert cut.losses["still"].energy_kept == 1.0
    assert not dense(cut.factors["still"]).any()
