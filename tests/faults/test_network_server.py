"""A server that is killed, stopped, short of sites or of disk: it goes on with the same command and the same bits."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from medfed.runs.checkpoints import Checkpoints
from medfed.sites.status import is_held
from support.checksums import checksums
from support.clocks import until
from support.federation_here import failures, sites_and_phases, weights, weights_without
from support.federation_trial import Process, Trial, written_folders
from support.planted_faults import Fault

Open = Callable[..., Trial]
GREETING, UPDATE = "medfed.sites.remote:_greeting", "medfed.sites.remote:_update"
FINISH, ASK = "medfed.runs.federation:FederationRun._finish_round", "medfed.sites.remote:RemoteExchange.__call__"
SCORES, GOODBYE = "medfed.sites.remote:RemoteExchange._scores", "medfed.sites.server:Hospitals.goodbye"
SYNC, SAVE = "medfed.runs.checkpoints:sha256_of", "medfed.runs.checkpoints:save_file"
STEP, INJECT = "medfed.injection.inject:Injector._step", "medfed.injection.inject:Injector.inject"
PREDICT = "medfed.runs.pipeline:predict"
STUDIES = Path(__file__).parents[2] / "studies"
MINUTES = 600.0
POINTS = {
    "as sites greet": Fault(GREETING, 2),
    "as sites train": Fault(UPDATE, 2),
    "as a checkpoint is written": Fault(SYNC, 1),
    "after the checkpoint of the sites' round": Fault(FINISH, 1),
    "between rounds": Fault(ASK, 2),
    "as sites evaluate": Fault(SCORES, 2),
    "before the goodbye": Fault(GOODBYE, 1),
}
IN_TURN = (
    Fault(GREETING, 2),
    Fault(UPDATE, 2),
    Fault(SYNC, 1),
    Fault(FINISH, 1),
    Fault(STEP, 3),
    Fault(ASK, 1),
    Fault(INJECT, 2),
    Fault(SCORES, 2),
    Fault(PREDICT, 1),
    Fault(GOODBYE, 1),
)
"""Of a study that injects: every start dies at the next point of the run."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, trial_data: Path) -> dict[str, str]:
    """The checksums of the run when nothing goes wrong."""
    root = tmp_path_factory.mktemp("undisturbed")
    trial = Trial(root, trial_data, root / "cache")
    try:
        server, sites = trial.server(), trial.all_sites()
        assert server.wait() == 0, trial.logs()
        assert [site.wait() for site in sites] == [0, 0, 0]
        return checksums(trial.run.root)
    finally:
        trial.close()


def ends_as(trial: Trial, undisturbed: dict[str, str], sites: list[Process]) -> None:
    """Start the server once more and see the run end as one in which nothing went wrong."""
    server = trial.server()
    assert server.wait() == 0, trial.logs()
    assert [site.wait() for site in sites] == [0, 0, 0], trial.logs()
    assert checksums(trial.run.root) == undisturbed
    assert trial.status.failures == ()


def test_a_server_killed_at_several_phases_ends_with_the_same_bits(
    open_trial: Open, undisturbed: dict[str, str]
) -> None:
    trial = open_trial()
    sites = trial.all_sites()
    for phase in ("as sites greet", "as sites train", "after the checkpoint of the sites' round", "as sites evaluate"):
        assert trial.server(POINTS[phase]).wait() == -signal.SIGKILL, f"{phase}\n{trial.logs()}"
    ends_as(trial, undisturbed, sites)


@pytest.mark.slow
@pytest.mark.parametrize("phase", POINTS)
def test_a_server_killed_at_any_phase_ends_with_the_same_bits(
    phase: str, open_trial: Open, undisturbed: dict[str, str]
) -> None:
    trial = open_trial()
    sites = trial.all_sites()
    assert trial.server(POINTS[phase]).wait() == -signal.SIGKILL, trial.logs()
    ends_as(trial, undisturbed, sites)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_server_of_fedkim_killed_at_every_phase_ends_with_the_same_bits(tmp_path: Path) -> None:
    """As above, with injection: the two federations of the study, the injector's state, the sites' memory of both."""
    text = (STUDIES / "fedkim-3sites.toml").read_text(encoding="utf-8")
    data = written_folders(text, tmp_path / "data")
    trials = []
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        trials.append(Trial(tmp_path / name, data, tmp_path / "cache", study=text))
    whole, killed = trials
    try:
        server, _ = whole.server(), whole.all_sites()
        assert server.wait(MINUTES) == 0, whole.logs()
        sites = killed.all_sites()
        for fault in IN_TURN:
            assert killed.server(fault).wait(MINUTES) == -signal.SIGKILL, f"{fault}\n{killed.logs()}"
        server = killed.server()
        assert server.wait(MINUTES) == 0, killed.logs()
        assert [site.wait() for site in sites] == [0, 0, 0], killed.logs()
        for folder in (whole.server_folder / "runs").iterdir():
            there = killed.server_folder / "runs" / folder.name
            assert checksums(there) == checksums(folder)
    finally:
        whole.close()
        killed.close()


def test_a_full_disk_keeps_the_old_checkpoint_and_the_same_command_goes_on(
    open_trial: Open, undisturbed: dict[str, str]
) -> None:
    trial = open_trial()
    sites = trial.all_sites()
    server = trial.server(Fault(SAVE, 3, "full"))
    assert server.wait() == 1, trial.logs()
    checkpoint = Checkpoints(trial.run.root).load()
    assert checkpoint is not None
    tensors, facts = checkpoint
    assert (facts["round"], facts["finished"]) == (1, True)
    needed = sum(value.nbytes for value in tensors.values())
    words = ("checkpoints/000004", "No space left on device", f"{needed:,} bytes are needed", "are free", "make room")
    for word in words:
        assert word in server.text, server.told()
    assert (trial.status.state, "000004" in trial.status.reason) == ("failed", True)
    assert [path.name for path in (trial.run.root / "checkpoints").iterdir() if "partial" in path.name] == []
    ends_as(trial, undisturbed, sites)


def test_a_server_that_is_stopped_says_so_and_the_same_command_goes_on(
    open_trial: Open, undisturbed: dict[str, str]
) -> None:
    trial = open_trial()
    sites = trial.all_sites()
    for number, status, answers in ((signal.SIGTERM, 143, 5), (signal.SIGINT, 130, 2)):
        server = trial.server(Fault(UPDATE, answers, "hold"))
        server.wait_for("held at")
        server.send(number)
        assert server.wait() == status, trial.logs()
        assert server.left_behind() == []
        assert not is_held(trial.server_folder)
        assert (trial.status.state, trial.status.round) == ("stopped", 2)
        assert Checkpoints(trial.run.root).load() is not None
    ends_as(trial, undisturbed, sites)


def test_too_few_sites_end_the_server_in_time_and_finished_rounds_are_kept(open_trial: Open) -> None:
    trial = open_trial(heartbeat=4.0, patience=2.0)
    sites, first = [trial.site("site-0"), trial.site("site-1")], trial.server()
    for site in sites:
        site.wait_for("connected")
    first.wait_for("waiting for")
    first.hurry()
    assert first.wait() == 3, trial.logs()
    for words in ("2 sites, 3 are needed", "site-2: not there", "start again", "lower min_sites"):
        assert words in first.text, first.told()
    assert trial.status.state == "too few sites"

    assert not (trial.server_folder / "runs").exists()
    trial.site("site-2", Fault("medfed.federated.exchange:Trainer.update", 2))
    second = trial.server()
    until(lambda: "waiting for site-2" in second.text.partition("site-2, round 2")[2], told=trial.logs)
    second.hurry()
    assert second.wait() == 3, trial.logs()
    assert "site-2: not there" in second.text
    assert sites_and_phases(failures(trial)) == {1: [], 2: [("site-2", "network")]}

    trial.site("site-2")
    assert trial.server().wait() == 0, trial.logs()
    assert sites_and_phases(failures(trial)) == {1: [], 2: [("site-2", "network")], 3: []}
    assert weights(trial.run) == weights_without(trial, "site-2", {2}, asked=False)


def test_a_port_that_is_taken_is_told_at_once(open_trial: Open) -> None:
    trial = open_trial()
    with socket.create_server(("127.0.0.1", trial.port)):
        server = trial.server()
        assert server.wait() == 1, server.told()
    for words in (f"127.0.0.1:{trial.port}: cannot listen: Address already in use", "change port"):
        assert words in server.text, server.told()
    assert trial.status.state == "failed"
