"""Answers replayed, doubled or in another's name are refused; what fails at a site tells no file and no patient."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import medfed.federated.memory
from medfed.core.errors import RunError, TooFewSitesError
from medfed.sites.folder import POLICY
from medfed.sites.remote import Message
from support.federation_here import InProcessTransport, failures, run_over, sites_and_phases, weights, weights_without
from support.federation_trial import STUDY, Trial
from support.planted_faults import Fault

Open = Callable[..., Trial]
BAD = "site-1"
STAY = 987654321
"""A stay that stands in no other file."""


def test_a_replayed_answer_is_refused_and_a_doubled_one_counts_once(open_trial: Open) -> None:
    trial = open_trial()
    server = trial.server()
    trial.site("site-0")
    trial.site("site-1", Fault("medfed.sites.client:SiteHandler._train", 2, "replay"))
    trial.site("site-2", Fault("medfed.sites.transport:Connection.reply", 3, "twice"))
    assert server.wait() == 0, trial.logs()
    told = failures(trial)
    assert sites_and_phases(told) == {1: [], 2: [(BAD, "gate")], 3: [(BAD, "gate")]}
    assert "it answers round 1, this is round 2" in told[2][0][2]
    assert "it answers round 1, this is round 2" in trial.said(["federation", "status", str(trial.server_folder)])
    assert weights(trial.run) == weights_without(trial, BAD, {2, 3}, asked=False)


def test_an_update_in_another_sites_name_is_refused(open_trial: Open) -> None:
    trial, updates = open_trial(), dict[str, Message]()

    def steal(site: str, letter: Message, answer: Message) -> Message:
        if letter.kind != "train":
            return answer
        updates[site] = answer
        return updates["site-0"] if site == BAD and letter.facts["round"] == "2" else answer

    run = run_over(trial, InProcessTransport(trial, steal))
    told = failures(trial)
    assert sites_and_phases(told) == {1: [], 2: [(BAD, "gate")], 3: []}
    assert "it answers for client 'site-0'" in told[2][0][2]
    assert weights(run) == weights_without(trial, BAD, {2}, asked=True)


@pytest.mark.parametrize("payload", [b"", b"\0" * 64, b"{}"], ids=["empty", "zeros", "JSON"])
def test_an_answer_that_is_no_update_is_a_failure_of_that_site_alone(payload: bytes, open_trial: Open) -> None:
    trial = open_trial(study=STUDY.replace("num_rounds = 3", "num_rounds = 1"))

    def spoil(site: str, letter: Message, answer: Message) -> Message:
        return answer._replace(payload=payload) if (site, letter.kind) == (BAD, "train") else answer

    run_over(trial, InProcessTransport(trial, spoil))
    assert sites_and_phases(failures(trial)) == {1: [(BAD, "network")]}
    assert "unreadable" in failures(trial)[1][0][2]


def test_a_site_that_cannot_read_its_data_tells_the_server_no_file_and_no_patient(
    open_trial: Open, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    trial = open_trial(min_sites=2, data=data)
    for name in ("outc.parquet", "sta.parquet"):
        path = next((data / BAD).rglob(name))
        table = pl.read_parquet(path)
        renamed = pl.when(pl.int_range(pl.len()) == 0).then(STAY).otherwise(pl.col("stay_id")).cast(pl.Int32)
        table.with_columns(renamed.alias("stay_id")).write_parquet(path)
    transport = InProcessTransport(trial)
    run_over(trial, transport)
    assert f"stay {STAY} has an outcome but no row" in transport.output(BAD)
    assert "dyn.parquet" in transport.output(BAD)
    (failure,) = trial.status.failures
    assert (failure.site, failure.phase) == (BAD, "hello")
    assert "its data cannot be used; the site's own log says which file" in failure.reason
    assert_scrubbed(trial, transport, (str(STAY), "dyn.parquet", str(data)))


def test_a_site_whose_policy_refuses_names_the_rule_and_no_path(open_trial: Open) -> None:
    trial = open_trial()
    path = trial.root / BAD / POLICY
    path.write_text(path.read_text(encoding="utf-8").replace('tasks = ["mp"]', 'tasks = ["lod"]'), encoding="utf-8")
    transport = InProcessTransport(trial)
    with pytest.raises(TooFewSitesError, match=r"(?s)2 sites, 3 are needed.*site-1: policy\.toml, tasks"):
        run_over(trial, transport)
    assert "none of which is allowed here" in transport.output(BAD)
    assert_scrubbed(trial, transport, (str(trial.root / BAD), str(trial.data)))


def test_training_that_diverges_names_site_round_task_and_step(open_trial: Open) -> None:
    trial = open_trial(study=STUDY.replace("lr = 0.05", "lr = 1e38"))
    transport = InProcessTransport(trial)
    with pytest.raises(RunError, match=r"(?s)round 1: 0 usable updates.*site-0 \(train\).*round 1.*task 'mp'.*step"):
        run_over(trial, transport)
    assert {failure.site for failure in trial.status.failures} == set(trial.sites)
    assert_scrubbed(trial, transport, (str(trial.root / BAD), str(trial.data), f"{BAD}/eicu_twin"))


def test_a_site_whose_disk_is_full_misses_the_round_keeps_its_state_and_goes_on(
    open_trial: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, save = open_trial(), medfed.federated.memory.save_file

    def full(tensors: object, path: Path, facts: object) -> None:
        if BAD in str(path) and path.name.startswith(".000002."):
            path.write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, path, facts)

    monkeypatch.setattr(medfed.federated.memory, "save_file", full)
    transport = InProcessTransport(trial)
    run = run_over(trial, transport)
    told = failures(trial)
    assert sites_and_phases(told) == {1: [], 2: [(BAD, "train")], 3: []}
    assert "its own files" in told[2][0][2]
    for words in ("000002.safetensors", "No space left on device", "bytes are needed", "make room on this disk"):
        assert words in transport.output(BAD)
    assert list((trial.root / BAD / "state").rglob(".*.partial-*")) == []
    assert_scrubbed(trial, transport, (str(trial.root / BAD), "000002.safetensors"))
    monkeypatch.undo()
    assert weights(run) == weights_without(trial, BAD, {2}, asked=False)


def test_a_site_that_cannot_write_its_audit_log_sends_nothing_but_that(
    open_trial: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = open_trial(study=STUDY.replace("num_rounds = 3", "num_rounds = 2"))
    log = trial.folder(BAD).audit.path

    def full(site: str, letter: Message, answer: Message) -> Message:
        if site == BAD and letter.kind == "hello":
            log.rename(log.with_suffix(".kept"))
            log.mkdir()  # no line can be written to it, whoever runs this test
        if site == BAD and letter.kind == "train" and letter.facts["round"] == "1":
            log.rmdir()
            log.with_suffix(".kept").rename(log)
        return answer

    transport = InProcessTransport(trial, full)
    run_over(trial, transport)
    assert sites_and_phases(failures(trial)) == {1: [(BAD, "train")], 2: []}
    assert "nothing leaves without it" in transport.output(BAD)
    assert_scrubbed(trial, transport, (str(trial.root / BAD), log.name))
    assert [entry["kind"] for entry in trial.egress(BAD)] == ["greeting", "update", "scores"]


def assert_scrubbed(trial: Trial, transport: InProcessTransport, secrets: tuple[str, ...]) -> None:
    """Neither what left the sites, nor their audit logs, nor the server's folder holds any of ``secrets``."""
    letters = [str(answer.facts).encode() + answer.payload for _, answer in transport.left]
    logs = [path.read_bytes() for site in trial.sites for path in (trial.root / site).glob("egress.jsonl*")]
    files = [path.read_bytes() for path in trial.server_folder.rglob("*") if path.is_file()]
    ours = str(trial.data / "server").encode()
    for secret in secrets:
        assert not [text for text in (*letters, *logs) if secret.encode() in text], secret
        assert not [text for text in files if secret.encode() in text.replace(ours, b"")], secret


def test_scrubbing_is_looked_for_where_it_could_fail(open_trial: Open) -> None:
    trial = open_trial()
    transport = InProcessTransport(trial)
    transport.left.append((BAD, Message("failure", {"reason": f"stay {STAY}"}, b"")))
    with pytest.raises(AssertionError):
        assert_scrubbed(trial, transport, (str(STAY),))
