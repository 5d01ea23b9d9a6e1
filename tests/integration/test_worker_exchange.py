"""Clients in worker processes give what clients in this process give, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from medfed.core.catalog import ALGORITHMS
from medfed.federated.exchange import ClientExchange, InProcessExchange, Trainer
from medfed.federated.memory import DiskMemory
from medfed.federated.rounds import RoundResult, initial_state, run_round, run_rounds
from medfed.federated.state import fingerprint
from medfed.federated.workers import Pool, Recipe, WorkerExchange
from medfed.study.algorithms import AlgorithmSettings
from medfed.study.federation import RoundSettings, UploadDtype
from support.federated_toys import SMALL, allowed, small_clients, small_federation, small_model

ROUNDS = RoundSettings(num_rounds=2)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Two processes for all tests of this module: starting them takes longer than the tests."""
    pool = Pool(2)
    yield pool
    pool.close()


def in_workers(
    algorithm: AlgorithmSettings, pool: Pool, folder: Path, upload_dtype: UploadDtype = "float32"
) -> WorkerExchange:
    memory, log = folder / "clients", folder / "workers.log"
    recipe = Recipe(small_model, algorithm, allowed(algorithm), 0, memory, log, upload_dtype)
    return WorkerExchange(small_clients(), recipe, pool, folder / "store")


def results(
    algorithm: AlgorithmSettings, exchange: ClientExchange, rounds: RoundSettings = ROUNDS
) -> list[RoundResult]:
    state = initial_state(small_model(), algorithm)
    return list(run_rounds(state, exchange, algorithm, small_federation(exchange), rounds))


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_ends_with_the_same_bits_as_in_one_process(name: str, pool: Pool, tmp_path: Path) -> None:
    algorithm = ALGORITHMS[name]()
    here = InProcessExchange(
        small_clients(), Trainer(small_model(), algorithm, allowed(algorithm, SMALL), 0, DiskMemory(tmp_path / "here"))
    )
    there = in_workers(algorithm, pool, tmp_path)
    wanted, got = results(algorithm, here), results(algorithm, there)
    for one, other in zip(wanted, got, strict=True):
        assert fingerprint(other.state.tensors(), {}) == fingerprint(one.state.tensors(), {})
        assert [record.metrics for record in other.clients] == [record.metrics for record in one.clients]
        assert other.failures == ()
    for client in here.registered:
        assert fingerprint(there.client_state(client), {}) == fingerprint(here.client_state(client), {})
    kept = {path.relative_to(tmp_path / "here"): path.read_bytes() for path in (tmp_path / "here").rglob("*.*")}
    assert {
        path.relative_to(tmp_path / "clients"): path.read_bytes() for path in (tmp_path / "clients").rglob("*.*")
    } == kept


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_rounded_changes_end_with_the_same_bits_as_in_one_process(
    dtype: UploadDtype, pool: Pool, tmp_path: Path
) -> None:
    algorithm, rounds = ALGORITHMS["scaffold"](), RoundSettings(num_rounds=2, upload_dtype=dtype)
    here = InProcessExchange(
        small_clients(), Trainer(small_model(), algorithm, allowed(algorithm), 0, upload_dtype=dtype)
    )
    wanted = results(algorithm, here, rounds)
    got = results(algorithm, in_workers(algorithm, pool, tmp_path, dtype), rounds)
    for one, other in zip(wanted, got, strict=True):
        assert fingerprint(other.state.tensors(), {}) == fingerprint(one.state.tensors(), {})
        assert (other.upload_error, other.failures) == (one.upload_error, ())
        assert [record.up_bytes for record in other.clients] == [record.up_bytes for record in one.clients]


def test_a_run_may_go_on_with_another_number_of_workers(pool: Pool, tmp_path: Path) -> None:
    algorithm = ALGORITHMS["scaffold"]()
    model, settings, memory = small_model(), allowed(algorithm, SMALL), DiskMemory(tmp_path / "clients")
    wanted = results(algorithm, InProcessExchange(small_clients(), Trainer(small_model(), algorithm, settings, 0)))
    here = InProcessExchange(small_clients(), Trainer(model, algorithm, settings, 0, memory))
    state, federation = initial_state(model, algorithm), small_federation(here)
    first = run_round(state, here, algorithm, federation, ROUNDS)
    second = run_round(first.state, in_workers(algorithm, pool, tmp_path), algorithm, federation, ROUNDS)
    assert fingerprint(second.state.tensors(), {}) == fingerprint(wanted[-1].state.tensors(), {})
