"""Sites that die, dawdle or lose the network in mid-round: the round closes by its rule, and they take part again."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from medfed.sites.status import is_held
from support.clocks import BOUND, until
from support.federation_here import failures, sites_and_phases, weights, weights_without
from support.federation_trial import Trial
from support.forwarder import Forwarder
from support.planted_faults import Fault

TRAIN, UPDATE = "medfed.federated.exchange:Trainer.update", "medfed.sites.remote:_update"
Open = Callable[..., Trial]


def test_a_site_killed_in_mid_round_is_missed_by_name_and_takes_part_in_the_next(open_trial: Open) -> None:
    trial = open_trial(min_sites=2, heartbeat=4.0, patience=2.0)
    server = trial.server()
    trial.site("site-1"), trial.site("site-2", Fault(TRAIN, 2, "hold"))
    assert trial.site("site-0", Fault(TRAIN, 2)).wait() == -signal.SIGKILL
    until(lambda: trial.has_failure, told=trial.logs)
    back = trial.site("site-0")
    back.wait_for("connected")
    trial.release()
    assert server.wait() == 0, trial.logs()
    told = failures(trial)
    assert sites_and_phases(told) == {1: [], 2: [("site-0", "network")], 3: []}
    assert "missed its heartbeats" in told[2][0][2]
    assert "failure in round 2: site-0 (network)" in trial.said(["federation", "status", str(trial.server_folder)])
    assert "round 3: training" in back.text
    assert weights(trial.run) == weights_without(trial, "site-0", {2}, asked=False)


def test_a_site_killed_in_mid_round_and_back_at_once_takes_part_in_the_same_round(open_trial: Open) -> None:
    trial = open_trial()
    server = trial.server()
    trial.site("site-1"), trial.site("site-2")
    assert trial.site("site-0", Fault(TRAIN, 2)).wait() == -signal.SIGKILL
    back = trial.site("site-0")
    assert server.wait() == 0, trial.logs()
    assert "round 2: training" in back.text
    assert failures(trial) == {1: [], 2: [], 3: []}
    assert weights(trial.run) == weights_without(trial, "nobody", set(), asked=True)


def test_a_slow_site_is_refused_as_stale_and_takes_part_again(open_trial: Open) -> None:
    trial = open_trial()
    server = trial.server(Fault(UPDATE, 1, "tell"))
    trial.site("site-0"), trial.site("site-1"), trial.site("site-2", Fault(TRAIN, 1, "hold"))
    server.wait_for(f"called {UPDATE}", times=2)
    server.hurry()
    until(lambda: trial.has_failure, told=trial.logs)
    trial.release()
    assert server.wait() == 0, trial.logs()
    told = failures(trial)
    assert sites_and_phases(told) == {1: [("site-2", "network")], 2: [], 3: []}
    assert "no answer within 600 s" in told[1][0][2]
    assert [failure.site for failure in trial.status.failures if failure.phase == "late"] == ["site-2"], trial.status
    assert "refused as stale" in trial.said(["federation", "status", str(trial.server_folder)])
    assert weights(trial.run) == weights_without(trial, "site-2", {1}, asked=True)


@pytest.mark.parametrize("way", ["cut", pytest.param("pause", marks=pytest.mark.slow)])
def test_a_network_that_is_cut_for_seconds_in_mid_round_changes_nothing(way: str, open_trial: Open) -> None:
    with Forwarder() as forwarder:
        trial = open_trial(port=forwarder.port)
        forwarder.target = trial.port
        server = trial.server()
        sites = [trial.site("site-0"), trial.site("site-1"), trial.site("site-2", Fault(TRAIN, 2, "hold"))]
        sites[2].wait_for("round 2: training")
        getattr(forwarder, way)()
        trial.release()
        if way == "cut":
            sites[2].wait_for("trying again")
        else:
            forwarder.stopped.wait(4)  # nobody can see a pause
        forwarder.mend()
        assert server.wait() == 0, trial.logs()
        assert [site.wait() for site in sites] == [0, 0, 0]
    assert trial.status.failures == (), trial.logs()
    assert failures(trial) == {1: [], 2: [], 3: []}
    assert weights(trial.run) == weights_without(trial, "nobody", set(), asked=True)


def test_a_site_without_a_server_tries_again_and_then_says_what_to_do(open_trial: Open) -> None:
    trial = open_trial()
    site = trial.site("site-0")
    site.wait_for("trying again in", times=3)
    site.hurry()
    assert site.wait() == 1, site.told()
    for words in ("no contact for", "Connection refused", f"server 127.0.0.1:{trial.port}", "ask whether the server"):
        assert words in site.text, site.told()


def test_a_site_that_is_stopped_says_so_by_its_exit_status_and_its_key_is_free_at_once(open_trial: Open) -> None:
    trial = open_trial(heartbeat=BOUND)  # a key that is free only after two of them would be free too late
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        lonely = trial.site("site-1")
        lonely.wait_for("trying again")
        lonely.send(number)
        assert lonely.wait() == status, lonely.told()
    trial.server().wait_for("listening")
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        site = trial.site("site-0")
        site.wait_for("connected")
        site.send(number)
        assert site.wait() == status, site.told()
        assert site.left_behind() == []
        assert not is_held(trial.root / "site-0")
