"""A worker process that is killed, a client with a bug, a worker that cannot start, a parent that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from torch import Tensor

from medfed.core.errors import RunError
from medfed.core.types import Broadcast, Params
from medfed.federated.algorithm import Algorithm
from medfed.federated.exchange import Answer, InProcessExchange, Trainer
from medfed.federated.local import LocalStep
from medfed.federated.rounds import RoundResult, initial_state, run_rounds
from medfed.federated.state import fingerprint
from medfed.federated.workers import Pool, Recipe, WorkerExchange
from medfed.study.algorithms import AlgorithmSettings, FedAvg
from medfed.study.federation import RoundSettings
from support.clocks import BOUND
from support.federated_toys import SMALL, Point, small_clients, small_federation, small_model


class Deadly(Algorithm):
    """FedAvg whose ``victim`` kills its process in the second step of round 1, as the kernel does without memory."""

    name: ClassVar[str] = "deadly"
    victim: str = "h1"

    def penalty(self, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Tensor | None:
        if step.site.client == self.victim and broadcast.round == 1 and step.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return None


class Buggy(Algorithm):
    """FedAvg with a bug at one client."""

    name: ClassVar[str] = "buggy"

    def penalty(self, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Tensor | None:
        if step.site.client == "h2":
            raise KeyError("nobody thought of this")
        return None


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(2)
    yield pool
    pool.close()


def exchange(algorithm: AlgorithmSettings, pool: Pool, folder: Path) -> WorkerExchange:
    recipe = Recipe(small_model, algorithm, SMALL, 0, folder / "clients", folder / "workers.log")
    return WorkerExchange(small_clients(), recipe, pool, folder / "store")


def rounds(
    algorithm: AlgorithmSettings, way: WorkerExchange | InProcessExchange, settings: RoundSettings
) -> list[RoundResult]:
    return list(run_rounds(initial_state(small_model(), algorithm), way, algorithm, small_federation(way), settings))


def test_a_killed_worker_fails_its_client_and_the_round_goes_on_without_it(pool: Pool, tmp_path: Path) -> None:
    first, second = rounds(Deadly(), exchange(Deadly(), pool, tmp_path), RoundSettings(num_rounds=2))
    assert [(failure.client, failure.phase) for failure in first.failures] == [("h1", "exchange")]
    assert "was killed by SIGKILL" in first.failures[0].reason
    assert [record.client for record in first.clients] == ["h0", "h2", "h3"]
    assert [record.client for record in second.clients] == ["h0", "h1", "h2", "h3"]
    # The survivors' round is the one of a federation in which h1 says nothing.
    here = InProcessExchange(small_clients(), Trainer(small_model(), FedAvg(), SMALL, 0))

    def without(round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        yield from (item for item in here(round, broadcasts) if item[0] != "h1" or round > 1)

    state = initial_state(small_model(), FedAvg())
    for result in run_rounds(state, without, FedAvg(), small_federation(here), RoundSettings(num_rounds=2)):
        state = result.state
    assert fingerprint(second.state.tensors(), {}) == fingerprint(state.tensors(), {})


def test_a_round_with_too_few_survivors_ends_with_the_reasons(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"min_clients is 4[\s\S]*h1 \(exchange\): the worker was killed by SIGKILL"):
        rounds(Deadly(), exchange(Deadly(), pool, tmp_path), RoundSettings(num_rounds=2, min_clients=4))


def test_a_bug_at_a_client_is_told_and_its_traceback_written(pool: Pool, tmp_path: Path) -> None:
    (result,) = rounds(Buggy(), exchange(Buggy(), pool, tmp_path), RoundSettings(num_rounds=1))
    (failure,) = result.failures
    assert (failure.client, failure.phase) == ("h2", "train")
    assert "KeyError: 'nobody thought of this'" in failure.reason
    assert str(tmp_path / "workers.log") in failure.reason
    log = (tmp_path / "workers.log").read_text(encoding="utf-8")
    assert "client 'h2', round 1" in log
    assert "in penalty" in log


def broken_model() -> Point:
    raise ImportError("no such encoder")


def test_workers_that_cannot_get_ready_end_the_run(pool: Pool, tmp_path: Path) -> None:
    recipe = Recipe(broken_model, FedAvg(), SMALL, 0, tmp_path / "clients", tmp_path / "workers.log")
    way = WorkerExchange(small_clients(), recipe, pool, tmp_path / "store")
    with pytest.raises(RunError, match="could not get ready: ImportError: no such encoder"):
        rounds(FedAvg(), way, RoundSettings(num_rounds=1))


def test_a_stopped_round_leaves_no_answer_behind_for_the_next(pool: Pool, tmp_path: Path) -> None:
    way = exchange(FedAvg(), pool, tmp_path)
    state = initial_state(small_model(), FedAvg())
    broadcast = FedAvg().build().broadcast(state, fingerprint(state.params, state.buffers))
    asked = way(1, dict.fromkeys(way.registered, broadcast))
    next(asked)
    asked.close()
    answers = list(way(1, dict.fromkeys(["h1", "h3"], broadcast)))
    assert sorted(client for client, _ in answers) == ["h1", "h3"]
    way.close()
    assert not (tmp_path / "store").exists()


ORPHANS = """
import signal, sys
from pathlib import Path
from medfed.federated.state import fingerprint
from medfed.federated.rounds import initial_state
from medfed.federated.workers import Pool, Recipe, WorkerExchange
from medfed.study.algorithms import FedAvg
from support.federated_toys import SMALL, small_clients, small_model

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    folder = Path(sys.argv[1])
    recipe = Recipe(small_model, FedAvg(), SMALL, 0, folder / "clients", folder / "log")
    way = WorkerExchange(small_clients(), recipe, Pool(1), folder / "store")
    state = initial_state(small_model(), FedAvg())
    broadcast = FedAvg().build().broadcast(state, fingerprint(state.params, state.buffers))
    answers = way(1, dict.fromkeys(way.registered, broadcast))
    next(answers)
    print("working", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_workers_end_with_their_parent(sent: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS, encoding="utf-8")
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command, environment = [sys.executable, str(script), str(tmp_path)], {**os.environ, "PYTHONPATH": path}
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "working\n"
    workers = psutil.Process(parent.pid).children()
    assert workers
    parent.send_signal(sent)
    parent.wait(BOUND)
    gone, alive = psutil.wait_procs(workers, BOUND)
    assert not alive
    assert len(gone) == len(workers)
