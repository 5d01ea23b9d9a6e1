"""The round loop: sampling, records, bytes, and that every round starts from the last one's state."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from medfed.core.errors import RunError
from medfed.federated.algorithm import Federation
from medfed.federated.rounds import initial_state, run_round, run_rounds, sample_clients
from medfed.federated.state import fingerprint
from medfed.study.algorithms import FedAvg
from medfed.study.federation import RoundSettings
from support.federated_toys import run, small_exchange, small_model

FEDERATION = Federation({f"h{number}": 10 for number in range(10)}, seed=3)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 10),
        ({"participation": 0.25}, 3),
        ({"participation": 0.01}, 1),
        ({"clients_per_round": 4}, 4),
        ({"participation": 0.2, "clients_per_round": 7}, 7),
    ],
)
def test_number_of_sampled_clients(settings: dict[str, float], count: int) -> None:
    drawn = sample_clients(FEDERATION, RoundSettings(**settings), 1)
    assert len(set(drawn)) == len(drawn) == count
    assert drawn == tuple(sorted(drawn))


def test_sampling_depends_on_seed_and_round_and_reaches_everyone() -> None:
    settings = RoundSettings(clients_per_round=3)
    drawn = [sample_clients(FEDERATION, settings, round) for round in range(1, 101)]
    assert drawn == [sample_clients(FEDERATION, settings, round) for round in range(1, 101)]
    assert drawn != [sample_clients(replace(FEDERATION, seed=4), settings, round) for round in range(1, 101)]
    counts = Counter(name for names in drawn for name in names)
    # 100 draws of 3 of 10: 30 each with a spread of √(100·0.3·0.7) ≈ 4.6; four spreads allowed.
    assert all(abs(counts[name] - 30) < 18.4 for name in FEDERATION.registered), counts


@pytest.mark.parametrize("settings", [{"clients_per_round": 11}, {"clients_per_round": 2, "min_clients": 3}])
def test_impossible_sampling_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(RunError, match=r"rounds\.min_clients is"):
        sample_clients(FEDERATION, RoundSettings(**settings), 1)


def test_rounds_chain() -> None:
    results = run(FedAvg(), 3)
    assert [result.round for result in results] == [1, 2, 3]
    assert results[0].base == fingerprint(*initial_state(small_model(), FedAvg()).weights)
    assert [result.base for result in results[1:]] == [fingerprint(*result.state.weights) for result in results[:-1]]


def test_a_finished_state_has_no_further_rounds() -> None:
    exchange = small_exchange(FedAvg())
    state = replace(initial_state(small_model(), FedAvg()), round=10)
    assert not list(run_rounds(state, exchange, FedAvg(), Federation(exchange.registered, 0), RoundSettings()))


def test_a_state_changed_between_rounds_is_what_clients_get() -> None:
    """Injection trains the encoders between rounds: the next round must start from them."""
    exchange = small_exchange(FedAvg())
    federation = Federation(exchange.registered, 0)
    first = run_round(initial_state(small_model(), FedAvg()), exchange, FedAvg(), federation, RoundSettings())
    name = "encoders.a.layers.0.weight"
    injected = replace(first.state, params={**first.state.params, name: first.state.params[name] + 1})
    plain = run_round(first.state, exchange, FedAvg(), federation, RoundSettings())
    second = run_round(injected, exchange, FedAvg(), federation, RoundSettings())
    assert second.round == 2
    assert second.base == fingerprint(*injected.weights) != plain.base
    assert (second.state.params[name] - plain.state.params[name]).mean().item() == pytest.approx(1, abs=0.2)


def test_records() -> None:
    (result,) = run(FedAvg(), 1)
    assert [record.client for record in result.clients] == ["h0", "h1", "h2", "h3"]
    params, buffers = initial_state(small_model(), FedAvg()).weights
    # Two encoders: Linear 5→4 (20) and BatchNorm (8 parameters, 8 statistics, one int64 counter); heads on 4 and 8
    # features: LayerNorm (8, 16) and Linear (10, 18). 108 parameters and 16 statistics of 4 bytes, 2 counters of 8.
    assert sum(value.numel() for value in params.values()) == 108
    assert len(buffers) == 6
    for record in result.clients:
        assert (record.down_bytes, record.up_bytes) == (512, 512)
        assert record.seconds > 0
        assert "seconds" not in record.metrics
    assert result.clients[1].metrics.keys() == {"loss.x"}
    assert result.clients[1].num_steps == 2  # 12 examples are 8 + 4
