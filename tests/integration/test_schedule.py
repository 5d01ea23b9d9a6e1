"""One injection after the last round: before it the run is the federation alone, and a killed one ends the same."""

from __future__ import annotations

import signal
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from medfed.core.progress import Reporter
from medfed.injection.inject import Injector
from medfed.records.folder import RunFolder
from medfed.records.schema import Development, Round, Routing, Step, Timing
from medfed.runs.checkpoints import Checkpoints
from medfed.runs.context import RunPaths
from medfed.runs.federation import INJECTION
from medfed.runs.pipeline import run_study
from medfed.study.study import study_of
from support.checksums import checksums
from support.planted_faults import Fault
from support.processes import run
from support.studies import QUICK

QUIET = Reporter(Console(quiet=True))
ROUNDS = 3
TOML = """
name = "quick"
train = ["lod", "ead"]
unseen = ["ped"]
baselines = ["federated"]
algorithm = "fedavg"
twins = { num_patients = 40 }
partition = { num_clients = 1 }
rounds = { num_rounds = 3 }
encoders = { image = "vit-mini", ecg = "conv1d" }
foundation = { kind = "tiny", num_steps = 2, width = 32, num_layers = 1, vocab_size = 400 }
injection = { num_experts = 4, rank = 2, num_epochs = 1, schedule = "SCHEDULE" }
evaluation = { num_resamples = 10, max_new_tokens = 4 }
"""


def words(place: Path, cache: Path, schedule: str = "last") -> list[str]:
    study = place / "quick.toml"
    study.write_text(TOML.replace("SCHEDULE", schedule), encoding="utf-8")
    return ["run", str(study), "--runs", str(place / "runs"), "--cache", str(cache)]


def folder(place: Path) -> Path:
    (found,) = (place / "runs" / "quick").iterdir()
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    place = tmp_path_factory.mktemp("whole")
    done = run(words(place, cache), place / "log")
    assert done.status == 0, done.text
    assert "federate, then inject once" in done.text
    return place


def test_before_the_injection_the_run_is_the_federation_alone(whole: Path) -> None:
    files = RunFolder(folder(whole))
    assert {step.round for step in files.lines(Step)} == {ROUNDS}
    assert [line.round for line in files.lines(Routing)] == [ROUNDS]
    assert [line.round for line in files.lines(Timing) if line.phase == "inject"] == [ROUNDS]
    alone = files.lines(Round, f"federated-only/{Round.NAME}")
    together = files.lines(Round)
    assert [line.base for line in together] == [line.base for line in alone]
    assert [[client.losses for client in line.clients] for line in together] == [
        [client.losses for client in line.clients] for line in alone
    ]
    before = {(it.round, it.task): it.values for it in files.lines(Development, f"federated-only/{Development.NAME}")}
    watched = files.lines(Development)
    assert {(line.round, line.model) for line in watched} == {(1, "heads"), (2, "heads"), (ROUNDS, "fedkim")}
    assert all(line.values == before[line.round, line.task] for line in watched if line.round < ROUNDS)


POINTS = [
    ("medfed.runs.checkpoints:Checkpoints.save", 6),
    ("medfed.runs.checkpoints:Checkpoints.save", 11),
    ("medfed.injection.inject:Injector._step", 1),
    ("medfed.runs.pipeline:predict", 2),
]


@pytest.mark.parametrize(("target", "count"), POINTS)
def test_a_killed_run_ends_with_the_same_bits(
    target: str, count: int, whole: Path, cache: Path, tmp_path: Path
) -> None:
    killed = run(words(tmp_path, cache), tmp_path / "killed.log", Fault(target, count))
    assert killed.status == -signal.SIGKILL, killed.text
    resumed = run(words(tmp_path, cache), tmp_path / "resumed.log")
    assert resumed.status == 0, resumed.text
    assert checksums(folder(tmp_path)) == checksums(folder(whole))


@pytest.mark.parametrize(("schedule", "states"), [("every", ROUNDS), ("last", 1)])
def test_the_injector_is_written_once_per_injection(
    schedule: str, states: int, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bool] = []
    state, save = Injector.state, Checkpoints.save

    def noted(self: Injector) -> Any:
        written.append(True)
        return state(self)

    kept: list[bool] = []

    def saved(self: Checkpoints, step: int, tensors: Any, facts: Any, *, same_injector: bool = False) -> None:
        kept.append(any(name.startswith("injector/") for name in tensors))
        save(self, step, tensors, facts, same_injector=same_injector)

    monkeypatch.setattr(Injector, "state", noted)
    monkeypatch.setattr(Checkpoints, "save", saved)
    injection = {**QUICK["injection"], "schedule": schedule}
    study = study_of({**QUICK, "rounds": {"num_rounds": ROUNDS}, "injection": injection}, "quick")
    made = run_study(study, RunPaths(tmp_path, cache), QUIET)
    assert len(written) == states == sum(kept)
    tensors, _ = Checkpoints(made).load() or ({}, {})
    assert any(name.startswith("injector/") for name in tensors)


def test_an_injection_that_is_stopped_goes_on_at_its_last_checkpoint(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medfed.runs.federation.SECONDS_UNSAVED", 0.0)
    more = ["rounds.num_rounds=2", "injection.num_epochs=3", "injection.batch_size=2"]
    study = study_of(deepcopy(QUICK), "quick", more)
    undisturbed = run_study(study, RunPaths(tmp_path / "a", cache), QUIET)
    taken: list[int] = []
    step = Injector._step

    def counted(self: Injector, *given: Any, **named: Any) -> dict[str, Any]:
        taken.append(1)
        if len(taken) == stop:
            raise KeyboardInterrupt
        return step(self, *given, **named)

    monkeypatch.setattr(Injector, "_step", counted)
    records = RunFolder(undisturbed).lines(Step)
    per_round = len(records) // 2
    assert per_round > 3, "the stop is in the middle of the second injection"
    stop = per_round + 3
    with pytest.raises(KeyboardInterrupt):
        run_study(study, RunPaths(tmp_path / "b", cache), QUIET)
    assert len(taken) == stop
    resumed = run_study(study, RunPaths(tmp_path / "b", cache), QUIET)
    print("two steps of the second injection were kept, so the rest is what a round has, less two")
    assert len(taken) - stop == per_round - 2
    assert checksums(resumed) == checksums(undisturbed)
    assert not (resumed / INJECTION).exists()
